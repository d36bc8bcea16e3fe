"""The run's log: plain lines on the terminal and in a file, from rank 0 only."""

import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from utils.errors import UserError
from utils.process.distributed import Process

FLUSH = 30  # seconds after which TensorBoard's numbers are on the disk at the latest, if more of them come

log = logging.getLogger("uniad")


class TerminalHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class LogFile(logging.FileHandler):
    """A file of the log; where the disk does not take it any more, the terminal says so once and the run goes on."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            print(f"warning: {self.baseFilename}: cannot be written ({sys.exc_info()[1]})", file=sys.stderr)
        self.failed = True


def start_log(folder: str | Path, process: Process, name: str) -> None:
    """Send the log to stdout and to <folder>/<name>.log, where it is appended; other ranks are silent below warnings."""
    log.setLevel(logging.INFO if process.is_main else logging.WARNING)
    log.propagate = False
    log.handlers.clear()
    terminal = TerminalHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    if not process.is_main:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = LogFile(Path(folder) / f"{name}.log", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: the log cannot be written there ({error.strerror}); set saver.log_dir") from None
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)


class Curves:
    """Numbers for TensorBoard, written in this thread: tensorboardX's own, once its disk is full, blocks the run for ever.

    Where the disk does not take them, a warning says so and the run goes on without. What an earlier run wrote into `folder`
    of `first_step` and later is no longer shown.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.file: RecordWriter | None = None
        self.next_flush = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"))
        except OSError as error:
            self._give_up(error)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *exception: object) -> None:
        self._attempt(lambda file: (file.flush(), file.close()))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def flush(self) -> None:
        """Have all numbers on the disk."""
        self._attempt(lambda file: file.flush())
        self.next_flush = time.monotonic() + FLUSH

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._attempt(lambda file: file.write(event.SerializeToString()))
        if time.monotonic() > self.next_flush:
            self.flush()

    def _attempt(self, action: Callable[[RecordWriter], Any]) -> None:
        try:
            if self.file:
                action(self.file)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("TensorBoard's curves end here, they cannot be written (%s)", error.strerror or error)
        if self.file:
            with suppress(OSError):
                self.file.close()
        self.file = None


def open_tensorboard(folder: str | Path, process: Process, first_step: int) -> AbstractContextManager[Curves | None]:
    """The curves below `folder`, on rank 0, to be entered with `with`; None elsewhere."""
    return Curves(_events(folder), first_step) if process.is_main else nullcontext()


def remove_events(folder: str | Path) -> None:
    """Remove what an earlier run wrote for TensorBoard below `folder`."""
    for path in _events(folder).glob("events.out.tfevents.*"):
        path.unlink()


def _events(folder: str | Path) -> Path:
    return Path(folder) / "tensorboard"
