"""Loaders: batches, images that cannot be read, and workers that ignore signals to the process group."""

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.errors import UserError

log = logging.getLogger("uniad")

# macOS and Windows do not report the sender of a signal: there it ends a worker, and the run ends with an error.
SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP} if hasattr(signal, "sigwaitinfo") else set()
PATIENCE = 45  # seconds without a batch before a run ends
POLL = 1  # seconds; the least that torch can wait
LONGEST_TMPDIR = 70  # bytes; workers make sockets below it, whose paths may have 107


class ShieldedLoader(DataLoader):
    """A DataLoader whose workers ignore signals, except a SIGTERM from the main process, which ends them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, worker_init_fn=obey_parent_only, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers and len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
            tempfile.tempdir = next((folder for folder in ("/tmp", "/dev/shm") if os.access(folder, os.W_OK)), None)
        if not SIGNALS:
            return super().__iter__()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit the mask; here the signals stay pending
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def obey_parent_only(worker: int) -> None:
    """Runs in a new worker: the signals are blocked, and a thread receives them and checks the sender."""

    def receive(parent: int) -> None:
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)

    if SIGNALS:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # spawn and forkserver pass no mask on
        main = multiprocessing.parent_process().pid  # not os.getppid(), which may be a fork server
        threading.Thread(target=receive, args=(main,), daemon=True).start()


class BadImage(NamedTuple):
    """Takes the place of a sample that could not be read."""

    filename: str
    reason: str


class SampleReader(Dataset):
    """Samples by index; `__getitem__` raises UserError for an unreadable image. A loader reads batches by `__getitems__`.

    With `on_bad_image` "stop" the error ends the run. With "skip" a BadImage takes the sample's place; in training it is
    followed by the next readable sample of the data set. The result depends on the files only, not on workers or processes.
    """

    def __init__(self, filenames: list[str], training: bool, on_bad_image: str) -> None:
        self.filenames, self.training, self.on_bad_image = filenames, training, on_bad_image
        self.warned: set[str] = set()  # names of the bad images already logged

    def __len__(self) -> int:
        return len(self.filenames)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any] | BadImage]:
        return [item for index in indices for item in self._read(index)]

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of samples as the loader gives it away, in the main process: here with nothing added."""
        return batch

    def _read(self, index: int) -> Iterator[dict[str, Any] | BadImage]:
        if self.on_bad_image == "stop":
            yield self[index]
            return
        for place in range(index, index + (len(self) if self.training else 1)):
            place %= len(self)
            try:
                sample = self[place]
            except UserError as error:
                bad = BadImage(self.filenames[place], str(error))
                yield bad
            else:
                yield sample
                return
        if self.training:
            raise UserError(f"no image can be read, of {len(self)}; the last one: {bad.reason}")


class ImageLoader(ShieldedLoader):
    """Batches of the readable samples; a batch without any is omitted.

    A worker that gives nothing for PATIENCE seconds ends the run with a UserError. Until then `while_waiting` is
    called every second. `skipped` lists the bad images that this process met since the loader was last started. A warning gives
    the reason once per run and image.
    """

    def __init__(self, dataset: SampleReader, **kwargs: Any) -> None:
        super().__init__(dataset, collate_fn=collate_readable, timeout=POLL if kwargs.get("num_workers") else 0, **kwargs)
        self.skipped: list[str] = []
        self.while_waiting: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = []
        for batch, bad_images in self._answers(super().__iter__()):
            for filename, reason in bad_images:
                if filename not in self.skipped:
                    self.skipped.append(filename)
                if filename not in self.dataset.warned:
                    self.dataset.warned.add(filename)
                    log.warning("skipped: %s", reason)
            if batch:
                yield self.dataset.complete(batch)

    def _answers(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """What the workers send; none is left behind where they are given up."""
        started = time.monotonic()
        while True:
            try:
                answer = next(iterator, None)
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
                try:
                    self._check_patience(time.monotonic() - started)
                except BaseException:
                    give_up(iterator)
                    raise
                continue
            if answer is None:
                return
            yield answer
            started = time.monotonic()

    def _check_patience(self, waited: float) -> None:
        if waited > PATIENCE:
            raise UserError(
                f"no loader worker has answered for {PATIENCE} seconds: the disk is slow or a worker hangs; set "
                "dataset.workers=0, or a smaller dataset.batch_size"
            )
        if waited > 3 * POLL:
            self.while_waiting()


def give_up(iterator: Any) -> None:
    """End a DataLoader's workers, of which torch's handler of SIGCHLD would say in a traceback that they were killed."""
    torch._C._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()


def describe_lost_worker(error: Exception) -> str:
    """A line where `error` is the end of a loader worker or its want of memory; empty otherwise."""
    text = str(error)
    if not any(sign in text for sign in ("DataLoader worker (pid", "/torch_", "ancdata", "unable to mmap", "shared memory")):
        return ""
    reason = text.strip().splitlines()[-1][:150]
    cure = "it may lack memory, shared memory (docker's --shm-size) or open files (ulimit -n)"
    return f"a loader worker was lost ({reason}): {cure}; set dataset.workers=0, or fewer, or a smaller dataset.batch_size"


def collate_readable(items: list[dict[str, Any] | BadImage]) -> tuple[dict[str, Any], list[BadImage]]:
    """A batch of the samples (tensors stacked, the rest as lists; empty without samples), and the bad images."""
    samples = [item for item in items if not isinstance(item, BadImage)]
    bad_images = [item for item in items if isinstance(item, BadImage)]
    return default_collate(samples) if samples else {}, bad_images
