"""A data set whose images are read as the features that a frozen backbone made of them; utils.training.feature_cache writes them.

A cache is a folder. It holds, a row an image in the order of the data set,
    features.bin  numbers of the configured dtype: C x h x w, for Dinomaly G x N x D; in a cache of images H x W x 3 bytes
    masks.bin     H x W bits
    sizes.bin     two int32, height and width of the original; 0 for an image that could not be read
    sums.bin      the CRC-32 of the image's row in each of these
and key.json, everything that decides the rows.
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.base import ImageDataset
from datasets.loading import SampleReader
from utils.errors import UserError
from utils.reading import parse_json, read_bytes

KEY = "key.json"
SAMPLE = 64  # random rows whose checksums are compared before a cache is used
CHUNK = 256  # rows that are copied to a device at a time


def row_sizes(key: dict[str, Any]) -> dict[str, int]:
    """Bytes of a row, by file; the key's shape is that of all features."""
    features = math.prod(key["shape"][1:]) * getattr(torch, key["dtype"]).itemsize
    return {"features.bin": features, "masks.bin": -(-math.prod(key["seen_size"]) // 8), "sizes.bin": 8, "sums.bin": 12}


def checksums(rows: Sequence[np.ndarray]) -> bytes:
    """An image's row of sums.bin. rows: its bytes in each of the other files."""
    return np.array([zlib.crc32(row) for row in rows], np.uint32).tobytes()


def is_whole(folder: Path, key: dict[str, Any], check: int = SAMPLE) -> bool:
    """Whether the folder holds a finished cache of this key, with the right content in `check` random rows."""
    try:
        found = parse_json(read_bytes(folder / KEY))
        sizes = {name: key["shape"][0] * size for name, size in row_sizes(key).items()}
        is_complete = found == key and all((folder / name).stat().st_size == size for name, size in sizes.items())
        return is_complete and Rows(folder, key).is_intact(check)
    except (OSError, ValueError):
        return False


class Rows:
    """The rows of the finished cache in `folder`."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self.key = folder, key
        self.files: list[np.memmap] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": []}  # pickled, a map would be the whole array: a worker opens its own

    def maps(self) -> list[np.memmap]:
        """Each file's bytes, a row an image."""
        if not self.files:
            sizes, count = row_sizes(self.key).items(), self.key["shape"][0]
            self.files = [np.memmap(self.folder / name, np.uint8, "r", shape=(count, size)) for name, size in sizes]
        return self.files

    def bytes_of(self, index: int) -> list[np.ndarray]:
        """The image's row in each file, copied."""
        return [np.array(rows[index]) for rows in self.maps()]

    def size_of(self, index: int) -> tuple[int, int]:
        """The original's height and width, 0 where the image could not be read."""
        _, _, sizes, _ = self.maps()
        return tuple(sizes[index].view(np.int32).tolist())

    def all_on(self, device: torch.device) -> torch.Tensor:
        """What is cached of all images, in the cache's dtype and order, on a device."""
        rows, *_ = self.maps()
        content = torch.empty(self.key["shape"], dtype=getattr(torch, self.key["dtype"]), device=device)
        for start in range(0, len(rows), CHUNK):
            part = torch.from_numpy(np.array(rows[start : start + CHUNK])).view(content.dtype)
            content[start : start + CHUNK] = part.view(-1, *content.shape[1:])
        return content

    def is_intact(self, check: int) -> bool:
        """Whether `check` random rows have their checksums; a row of size 0 is of an image that could not be read."""
        for index in np.random.default_rng().permutation(self.key["shape"][0])[:check]:
            *rows, known = self.bytes_of(index)
            if rows[-1].any() and checksums(rows) != known.tobytes():
                return False
        return True

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray, tuple[int, int]]:
        """What is cached of the image, in the cache's dtype; its mask, H x W uint8; the original's height and width."""
        content, mask, *_ = self.bytes_of(index)
        height, width = self.key["seen_size"]
        content = torch.from_numpy(content).view(getattr(torch, self.key["dtype"])).reshape(self.key["shape"][1:])
        return content, np.unpackbits(mask, count=height * width).reshape(height, width), self.size_of(index)


class FeatureDataset(SampleReader):
    """The images of `data` as their features, from the finished cache in `folder`.

    A sample is a dict as in `ImageDataset`, with what the reconstruction reads, float32, in place of the image. An image that
    could not be read for the cache is a bad image here too. After `hold` features are gathered a batch at a time, on a device.
    """

    def __init__(self, data: ImageDataset, folder: Path, key: dict[str, Any]) -> None:
        super().__init__(data.filenames, data.training, data.on_bad_image)
        self.data, self.rows = data, Rows(folder, key)
        self.labels, self.clsnames, self.warned = data.labels, data.clsnames, data.warned
        self.epoch = 0
        self.held: torch.Tensor | None = None  # all features, on a device

    def hold(self, device: torch.device) -> None:
        """Keep all features on a device, from where `complete` gathers them; samples are then without features and masks."""
        self.held = self.rows.all_on(device)

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See SampleReader."""
        if self.held is None:
            return batch
        index = batch["index"].to(self.held.device, non_blocking=True)
        return {self.rows.key["reads"]: self.held[index].float(), **batch}

    def read_rgb(self, index: int) -> np.ndarray:
        """The original picture, h x w x 3 uint8 RGB, for visualisation."""
        return self.data.read_rgb(index)

    def seen_inside(self, clsname: str) -> np.ndarray | None:
        """See ImageDataset."""
        return self.data.seen_inside(clsname)

    def __getitem__(self, index: int) -> dict[str, Any]:
        height, width = self.rows.size_of(index)
        if not height:
            self.data.load(index)  # raises the reason
            raise UserError(f"{self.filenames[index]} could not be read when features were computed: remove {self.rows.folder}")
        content = {}
        if self.held is None:
            features, mask, _ = self.rows[index]
            content = {self.rows.key["reads"]: features.float(), "mask": torch.from_numpy(mask)[None].float()}
        return content | {
            "label": self.labels[index],
            "clsname": self.clsnames[index],
            "filename": self.filenames[index],
            "height": height,
            "width": width,
            "index": index,
        }


class ResizedImages(SampleReader):
    """The images and masks of `data` at the network's input size, not augmented: what a cache of images holds."""

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data.filenames, False, data.on_bad_image)
        self.data, self.warned = data, data.warned

    def __getitem__(self, index: int) -> dict[str, Any]:
        original, mask = self.data.load(index)
        image, mask = self.data.transform.resized(original, mask)
        height, width = original.shape[:2]
        return {
            "image": torch.from_numpy(image.copy()),
            "mask": torch.from_numpy(mask.copy()),
            "height": height,
            "width": width,
            "index": index,
        }
