"""Photographs in tiles, so that small defects stay as large as they are. Nothing here imports torch."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.roi import Roi
from utils.errors import UserError
from utils.limits import TILES


@dataclass(frozen=True)
class Tiles:
    """The key dataset.tiles: size, (height, width), and overlap of neighbours, in pixels of the photograph."""

    size: tuple[int, int]
    overlap: int

    @classmethod
    def of(cls, setting: dict[str, Any] | None) -> "Tiles | None":
        """None: photographs are not cut."""
        return cls(tuple(setting["size"]), setting["overlap"]) if setting else None

    def layout(self, size: Sequence[int]) -> "Layout":
        """How a photograph of `size`, (h, w), is cut: no less overlap than asked for, and the last tile ends where it ends.

        Raises UserError for more tiles than TILES.
        """
        tops, lefts = (starts(length, side, self.overlap) for length, side in zip(size, self.size, strict=True))
        if (count := len(tops) * len(lefts)) > TILES:
            raise UserError(f"a photograph of {size[1]} x {size[0]} pixels has {count:,} tiles: make dataset.tiles.size larger")
        return Layout(tuple(size), self.size, tuple((top, left) for top in tops for left in lefts))


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin on an axis: evenly spread, and only one where `length` is not longer than `side`."""
    count = math.ceil((max(length, side) - overlap) / (side - overlap))
    return np.rint(np.linspace(0, max(0, length - side), count)).astype(int).tolist()


@dataclass(frozen=True)
class Layout:
    """The tiles of one photograph. One that is smaller than a tile is continued by its mirror image."""

    size: tuple[int, int]  # h, w of the photograph
    tile: tuple[int, int]
    places: tuple[tuple[int, int], ...]  # each tile's top and left

    def cut(self, picture: np.ndarray, number: int) -> np.ndarray:
        """Tile `number` of a picture of the photograph's size, h x w (x 3)."""
        (top, left), (height, width) = self.places[number], self.tile
        return continued(picture[top : top + height, left : left + width], self.tile)

    def inside(self, roi: Roi, clsname: str | None, number: int, size: Sequence[int]) -> np.ndarray:
        """The region of interest in tile `number`, H x W bool at `size`, that of the network's input."""
        pairs = list(zip(self.places[number], self.tile, self.size, strict=True))
        seen = [min(side, length) for _, side, length in pairs]  # without what continues the photograph
        visible = [max(1, round(n * part / side)) for n, part, side in zip(size, seen, self.tile, strict=True)]
        box = [start / length for start, _, length in pairs]
        box += [(start + part) / length for (start, _, length), part in zip(pairs, seen, strict=True)]
        return continued(roi.part(clsname, visible, box), size)

    def inspected(self, roi: Roi | None, clsname: str | None, size: Sequence[int]) -> "Layout":
        """Only the tiles that show anything of the region of interest at `size`. UserError where none does."""
        if roi is None:
            return self
        numbers = range(len(self.places))
        kept = tuple(self.places[number] for number in numbers if self.inside(roi, clsname, number, size).any())
        if not kept:
            raise UserError(f"dataset.roi: no tile shows anything of the region of '{clsname or 'all classes'}'")
        return replace(self, places=kept)

    def joined_size(self, size: Sequence[int]) -> tuple[int, int]:
        """H, W of the whole photograph's map; size: of a tile's map."""
        triples = zip(self.size, self.tile, size, strict=True)
        return tuple(max(1, place(length - side, side, n) + n) for length, side, n in triples)

    def windows(self, size: Sequence[int]) -> Iterator[tuple[slice, slice]]:
        """Where in the whole map each tile's map lies, to the nearest pixel. size: of a tile's map."""
        for start in self.places:
            yield tuple(slice(top := place(*one), top + one[2]) for one in zip(start, self.tile, size, strict=True))

    def join(self, maps: Iterable[np.ndarray], size: Sequence[int]) -> np.ndarray:
        """The whole map, float32, of the tiles' maps, each of `size`: neighbours are blended linearly where they overlap."""
        weight = ramp(size[0])[:, None] * ramp(size[1])
        joined, total = (np.zeros(self.joined_size(size), np.float32) for _ in range(2))
        for window in self.windows(size):
            part = total[window]
            part += weight[: part.shape[0], : part.shape[1]]
        for window, one in zip(self.windows(size), maps, strict=True):
            part = joined[window]
            seen = slice(part.shape[0]), slice(part.shape[1])
            part += weight[seen] / total[window] * one[seen]  # the weights first: of one tile they are exactly 1
        return joined

    def join_masks(self, masks: Iterable[np.ndarray], size: Sequence[int]) -> np.ndarray:
        """The whole mask of the tiles' masks, uint8, each of `size`: marked is what any tile marks."""
        joined = np.zeros(self.joined_size(size), np.uint8)
        for window, mask in zip(self.windows(size), masks, strict=True):
            part = joined[window]
            np.maximum(part, mask[: part.shape[0], : part.shape[1]], out=part)
        return joined


def place(start: int, side: int, size: int) -> int:
    """A place on an axis of the photograph in a map that has `size` pixels for `side`."""
    return round(start * size / side)


def ramp(size: int) -> np.ndarray:
    """The weights of a tile's map on an axis: highest in its middle."""
    return np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).astype(np.float32)


def continued(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """h x w (x 3), mirrored at its lower and right edge until it has `size`."""
    missing = [(0, side - length) for length, side in zip(picture.shape, size, strict=False)]
    return np.pad(picture, missing + [(0, 0)] * (picture.ndim - 2), mode="symmetric") if any(map(any, missing)) else picture
