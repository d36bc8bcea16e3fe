"""Signals that ask a training run to stop in good order: a cluster sends them before it takes the machine away."""

import signal
import threading
from types import FrameType
from typing import Any

from utils.process.distributed import Process, maximum, stop_process

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows lacks the second


class StopSignals:
    """Inside `with`, SIGTERM and SIGUSR1 are noted, however often they come, and do nothing else.

    Outside the main thread, where Python sets no handlers, they act as ever.
    """

    def __init__(self) -> None:
        self.noted = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number

    def agreed(self, process: Process) -> int:
        """The number of a signal that any process has noted, 0 if none has; the same in all, each of which must call it.

        A signal may reach them at different steps, or one of them only.
        """
        return maximum(self.noted, process)


def leave() -> None:
    """Part from the other processes, all of which have agreed to stop.

    Signals are ignored from here on: a launcher that ends the last processes once the first is gone changes no exit code.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stop_process()
