"""Loaders: batches, images that cannot be read, and workers that outlive signals."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, default_collate

from utils.errors import UserError

log = logging.getLogger("uniad")

# macOS and Windows do not tell who sent a signal: there a worker dies of it, and the run ends with an error.
SIGNALS = {signal.SIGTERM, signal.SIGUSR1} if hasattr(signal, "sigwaitinfo") else set()


class ShieldedLoader(DataLoader):
    """A DataLoader of which SIGTERM and SIGUSR1 end no worker, unless the main process sends them (it does so at its end)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, worker_init_fn=obey_parent_only, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        if not SIGNALS:
            return super().__iter__()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit it; for this process they wait
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def obey_parent_only(worker: int) -> None:
    """Called in a new worker, which has the signals blocked: receive them in a thread of their own, which looks at the sender."""

    def receive(parent: int) -> None:
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)

    if SIGNALS:
        threading.Thread(target=receive, args=(os.getppid(),), daemon=True).start()


class BadImage(NamedTuple):
    """Stands among the samples for one that could not be read."""

    filename: str
    reason: str


class SampleReader(Dataset):
    """Samples by index; one whose image cannot be read is a UserError. A loader reads a batch of them by `__getitems__`.

    With `on_bad_image` "skip" a batch has a BadImage there, and in training, behind it, the next sample of the data set that
    can be read; with "stop" the error ends the run. What is read depends on the files alone, not on workers or processes.
    """

    def __init__(self, filenames: list[str], training: bool, on_bad_image: str) -> None:
        self.filenames, self.training, self.on_bad_image = filenames, training, on_bad_image
        self.warned: set[str] = set()  # names of bad images that a warning was written of

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
    """Batches of the samples that could be read; a batch without any is left out.

    `skipped` holds the names of bad images that this process has met since the loader was last started, in their order; of each
    a warning says why, once a run.
    """

    def __init__(self, dataset: SampleReader, **kwargs: Any) -> None:
        super().__init__(dataset, collate_fn=separate, **kwargs)
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


def separate(items: list[dict[str, Any] | BadImage]) -> tuple[dict[str, Any], list[BadImage]]:
    """The samples as a batch, tensors stacked and the rest in lists, and the bad images among them."""
    samples = [item for item in items if not isinstance(item, BadImage)]
    return default_collate(samples) if samples else {}, [item for item in items if isinstance(item, BadImage)]
