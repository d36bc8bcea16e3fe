"""What becomes of an image that cannot be read: the run stops with its name, or it is skipped, counted and reported."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.utils.data import Dataset, default_collate

from datasets.workers import ShieldedLoader
from utils.errors import UserError

log = logging.getLogger("uniad")


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
