"""The run's log: plain lines on the terminal and in a file, from rank 0 only."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from utils.errors import UserError
from utils.files import open_to_append
from utils.process.distributed import Process

EVENTS = "tensorboard"  # a folder in the log folder
FLUSH = 30  # seconds between writing TensorBoard's points to the disk, as long as new ones come

log = logging.getLogger("uniad")


def silence(*streams: TextIO) -> None:
    """Let what is written to a stream go nowhere: its reader is gone."""
    for stream in streams:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


class TerminalHandler(logging.Handler):
    """Writes above a progress bar instead of through it. A terminal or pipe that is gone ends no run."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:
            silence(sys.stdout)


class LogFile(logging.FileHandler):
    """A log file; if it can no longer be written, one warning goes to the terminal and the run continues."""

    failed = False

    def _open(self) -> TextIO:
        return open_to_append(self.baseFilename, "a", encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            print(f"warning: {self.baseFilename}: cannot be written ({sys.exc_info()[1]})", file=sys.stderr)
        self.failed = True


def start_log(folder: str | Path, process: Process, name: str) -> None:
    """Log to stdout and append to <folder>/<name>.log, on rank 0; other ranks print warnings and errors only."""
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
        file = LogFile(Path(folder) / f"{name}.log", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{folder}: the log cannot be written there ({error.strerror}); set saver.log_dir") from None
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)


class Curves:
    """Scalars for TensorBoard, written in this thread; if the disk fails, a warning says so and the run continues without.

    tensorboardX's SummaryWriter has a thread of its own: once its disk is full, `add_scalar` blocks for ever, and its `flush`
    leaves points in a queue that a killed run loses. TensorBoard hides what earlier runs wrote at `first_step` and later.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.writer: EventsWriter | None = None
        self.next_flush = 0.0
        with self._until_disk_fails():
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def flush(self) -> None:
        """Write all points to the disk."""
        with self._until_disk_fails():
            if self.writer:
                self.writer.flush()
        self.next_flush = time.monotonic() + FLUSH

    def close(self) -> None:
        with self._until_disk_fails():
            if self.writer:
                self.writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._until_disk_fails():
            if self.writer:
                self.writer.write_event(event)
        if time.monotonic() > self.next_flush:
            self.flush()

    @contextmanager
    def _until_disk_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("TensorBoard's curves end here, they cannot be written (%s)", error.strerror or error)
            self.writer = None


def open_tensorboard(folder: str | Path, process: Process, first_step: int) -> AbstractContextManager[Curves | None]:
    """The curves below `folder`, on rank 0, for a `with` statement; None elsewhere."""
    return closing(Curves(Path(folder, EVENTS), first_step)) if process.is_main else nullcontext()


def remove_events(folder: str | Path) -> None:
    """Remove what an earlier run wrote for TensorBoard below `folder`."""
    for path in Path(folder, EVENTS).glob("events.out.tfevents.*"):
        path.unlink()
