"""Signals that ask a training to save and stop: a cluster sends them before it takes the machine away."""

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from utils.process.distributed import Process, maximum, stop_process
from utils.process.log import silence

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # Windows lacks the last two
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

log = logging.getLogger("uniad")


class StopSignals:
    """Inside `with`, SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C are only noted; a second Ctrl-C leaves at once.

    A signal that the caller ignores, as under nohup, stays ignored. Outside the main thread, where Python sets no handlers, all
    act as usual.
    """

    def __init__(self) -> None:
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {n: signal.signal(n, self._note) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, _: object) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if number == getattr(signal, "SIGHUP", None):
            silence(sys.stdout, sys.stderr)  # the terminal is gone
        elif number == signal.SIGINT:
            _say("Ctrl-C: this step ends and is saved; once more leaves at once\n")
        self.received = number

    def agreed(self, process: Process) -> int:
        """The number of a signal that any process has received, else 0; the same in all processes, which must all call this."""
        return maximum(self.received, process)


def _say(text: str) -> None:
    """Past the log, where the log's lines are said: the signal may have come in the middle of one, which bears no second."""
    if log.isEnabledFor(logging.INFO):
        with suppress(OSError, ValueError):  # no terminal
            os.write(sys.stderr.fileno(), text.encode())


def leave_process_group() -> None:
    """Disconnect from the other processes after all have agreed to stop.

    From here on signals are ignored: a launcher that terminates the last processes when the first ends changes no exit code.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stop_process()
