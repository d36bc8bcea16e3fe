"""What all data sets share: how a sample is made."""

import os
from pathlib import Path

import numpy as np

from datasets.bad_images import SampleReader
from datasets.transforms import Transform


class ImageDataset(SampleReader):
    """A list of labelled images; a subclass says how to read one.

    A sample is a dict: image 3 x H x W float32, mask 1 x H x W float32 in {0, 1}, label 0 (normal) or 1 (anomalous),
    clsname, filename, height and width (of the original), index (its position in the data set).

    Augmentation depends on (seed, epoch, index) alone, so neither the number of workers or processes nor a resumed run
    changes it. The training loop sets `epoch` before each epoch.
    """

    def __init__(
        self,
        filenames: list[str],
        labels: list[int],
        clsnames: list[str],
        transform: Transform,
        training: bool,
        seed: int,
        on_bad_image: str = "stop",
    ) -> None:
        super().__init__(filenames, training, on_bad_image)
        self.labels, self.clsnames = labels, clsnames
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The original image, h x w x 3 uint8, and its mask, h x w in {0, 1}, or None where there is none.

        Raises UserError for an image or a mask that cannot be read.
        """
        raise NotImplementedError

    def read_rgb(self, index: int) -> np.ndarray:
        """The original picture, h x w x 3 uint8 RGB, for visualisation."""
        raise NotImplementedError

    def sources(self) -> list[tuple[str, int, int]]:
        """Path, size in bytes and time of the last change in ns of every file that samples are read from, in their order."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        original, mask = self.load(index)
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.training else None
        image, mask = self.transform(original, mask, rng)
        return {
            "image": image,
            "mask": mask,
            "label": self.labels[index],
            "clsname": self.clsnames[index],
            "filename": self.filenames[index],
            "height": original.shape[0],
            "width": original.shape[1],
            "index": index,
        }


def describe_file(path: str | Path) -> tuple[str, int, int]:
    """Path, size in bytes and time of the last change in ns, both -1 where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: not a path that could be
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns
