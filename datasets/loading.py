"""Loaders: batches, images that cannot be read, and workers that ignore signals to the process group."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, default_collate

from utils.errors import UserError

log = logging.getLogger("uniad")

# macOS and Windows do not report the sender of a signal: there it ends a worker, and the run ends with an error.
SIGNALS = {signal.SIGTERM, signal.SIGUSR1} if hasattr(signal, "sigwaitinfo") else set()


class ShieldedLoader(DataLoader):
    """A DataLoader whose workers ignore SIGTERM and SIGUSR1, except a SIGTERM from the main process, which ends them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, worker_init_fn=obey_parent_only, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        if not SIGNALS:
            return super().__iter__()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit the mask; here the signals stay pending
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def obey_parent_only(worker: int) -> None:
    """Runs in a new worker, where the signals are blocked: a thread receives them and checks the sender."""

    def receive(parent: int) -> None:
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)

    if SIGNALS:
        threading.Thread(target=receive, args=(os.getppid(),), daemon=True).start()


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

    `skipped` lists the bad images that this process met since the loader was last started. A warning gives the reason once per
    run and image.
    """

    def __init__(self, dataset: SampleReader, **kwargs: Any) -> None:
        super().__init__(dataset, collate_fn=collate_readable, **kwargs)
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = []
        for batch, bad_images in super().__iter__():
            for filename, reason in bad_images:
                if filename not in self.skipped:
                    self.skipped.append(filename)
                if filename not in self.dataset.warned:
                    self.dataset.warned.add(filename)
                    log.warning("skipped: %s", reason)
            if batch:
                yield batch


def collate_readable(items: list[dict[str, Any] | BadImage]) -> tuple[dict[str, Any], list[BadImage]]:
    """A batch of the samples (tensors stacked, the rest as lists; empty without samples), and the bad images."""
    samples = [item for item in items if not isinstance(item, BadImage)]
    bad_images = [item for item in items if isinstance(item, BadImage)]
    return default_collate(samples) if samples else {}, bad_images
