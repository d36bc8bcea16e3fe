"""The run's log: plain lines on the terminal and in a file, from rank 0 only."""

import logging
import sys
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from utils.distributed import Process
from utils.errors import UserError

log = logging.getLogger("uniad")


class TerminalHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


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
        file = logging.FileHandler(Path(folder) / f"{name}.log", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: the log cannot be written there ({error.strerror}); set saver.log_dir") from None
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)


def open_tensorboard(folder: str | Path, process: Process) -> SummaryWriter | None:
    """The writer of TensorBoard's files below `folder`, on rank 0."""
    return SummaryWriter(str(Path(folder) / "tensorboard")) if process.is_main else None
