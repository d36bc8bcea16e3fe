"""The base class of all data sets: makes a sample from an image and its mask."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from datasets.loading import SampleReader
from datasets.pseudo import paste_defect
from datasets.roi import Roi
from datasets.tiles import Tiles
from datasets.transforms import Transform, mask_to_tensor
from utils.errors import UserError

DONOR_SHARE = 1 / 3  # share of the artificial defects that are filled from another image


class ImageDataset(SampleReader):
    """Labelled images; a subclass implements `load`, `size`, `read_rgb` and `sources`.

    `roi`: the region of interest; None: all is inside. `tiles`: how datasets.tiled cuts the photographs; None: it does not.

    A sample is a dict: image 3 x H x W float32, mask 1 x H x W float32 in {0, 1}, label 0 (normal) or 1 (anomalous),
    clsname, filename, height and width (of the original), index (its position in the data set). With `pseudo_anomalies` a
    training sample also has pseudo, the image with an artificial defect, and pseudo_mask, the pixels that the defect changed.

    Augmentation and defects depend on (seed, epoch, index) only, so workers, processes and resuming do not change them. The
    training loop sets `epoch` before each epoch.
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
        pseudo_anomalies: bool = False,
        roi: Roi | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__(filenames, training, on_bad_image)
        self.labels, self.clsnames = labels, clsnames
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        self.pseudo_anomalies = pseudo_anomalies
        self.roi, self.tiles = roi, tiles
        for name in set(clsnames) if roi and tiles is None else ():
            if not self.seen_inside(name).any():
                raise UserError(f"dataset.roi: dataset.crop leaves nothing of the region of '{name}'")
        self.resized: Any = None  # rows of a cache of images, datasets.cached.Rows

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The original image, h x w x 3 uint8, and its mask, h x w in {0, 1}, or None without a mask.

        UserError for an image or a mask that cannot be read.
        """
        raise NotImplementedError

    def load_sized(self, index: int) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """As `load`, and the original's height and width; a cache gives image and mask at the network's input size."""
        if self.resized is not None:
            image, mask, size = self.resized[index]
            if size[0]:
                return image.numpy(), mask, size
        image, mask = self.load(index)
        return image, mask, image.shape[:2]

    def read_rgb(self, index: int) -> np.ndarray:
        """The original picture, h x w x 3 uint8 RGB, for visualisation."""
        raise NotImplementedError

    def read_seen(self, index: int) -> np.ndarray:
        """The part of `read_rgb` that a sample shows."""
        return self.transform.middle(self.read_rgb(index))

    def seen_inside(self, clsname: str) -> np.ndarray | None:
        """The class's region of interest in a sample, H x W bool; None: all is inside."""
        return self.transform.middle(self.roi.inside(clsname, self.transform.input_size)) if self.roi else None

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the original. UserError as for `load`."""
        raise NotImplementedError

    def inside(self, index: int) -> np.ndarray | None:
        """The region of interest, H x W bool of the network's input, before a crop; None: all is inside."""
        return self.roi.inside(self.clsnames[index], self.transform.input_size) if self.roi else None

    def sources(self) -> list[tuple[str, int, int]]:
        """Path, size in bytes and modification time in ns of every file that samples are read from, in the samples' order."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        original, mask, (height, width) = self.load_sized(index)
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.training else None
        image, mask = self.transform.arrays(original, mask, rng, self.inside(index))
        sample = {
            "image": self.transform.to_tensor(image),
            "mask": mask_to_tensor(mask),
            "label": self.labels[index],
            "clsname": self.clsnames[index],
            "filename": self.filenames[index],
            "height": height,
            "width": width,
            "index": index,
        }
        if rng is not None and self.pseudo_anomalies:
            donor = self._read_donor(rng) if rng.random() < DONOR_SHARE else None
            pseudo, pseudo_mask = paste_defect(image, donor, rng)
            sample |= {"pseudo": self.transform.to_tensor(pseudo), "pseudo_mask": mask_to_tensor(pseudo_mask)}
        return sample

    def _read_donor(self, rng: np.random.Generator) -> np.ndarray | None:
        """A random image of the data set, H x W x 3 uint8; None if it cannot be read and bad images are skipped."""
        try:
            donor, _, _ = self.load_sized(rng.integers(len(self)))
        except UserError:
            if self.on_bad_image == "stop":
                raise
            return None  # reported when the image itself is the sample
        return self.transform.arrays(donor, None, None)[0]


def describe_file(path: str | Path) -> tuple[str, int, int]:
    """Path, size in bytes and modification time in ns; both are -1 for a missing file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: not a valid path
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns
