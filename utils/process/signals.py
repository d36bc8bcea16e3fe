"""Signals that ask a training to save and stop: a cluster sends them before it takes the machine away."""

import signal
import threading
from typing import Any

from utils.process.distributed import Process, maximum, stop_process

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows lacks the second


class StopSignals:
    """Inside `with`, SIGTERM and SIGUSR1 are only noted; not outside the main thread, where Python sets no handlers."""

    def __init__(self) -> None:
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, _: object) -> None:
        self.received = number

    def agreed(self, process: Process) -> int:
        """The number of a signal that any process has received, else 0; the same in all processes, which must all call this."""
        return maximum(self.received, process)


def leave_process_group() -> None:
    """Disconnect from the other processes after all have agreed to stop.

    From here on signals are ignored: a launcher that terminates the last processes when the first ends changes no exit code.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stop_process()
