"""Region of interest: the part of a photograph that is inspected. Nothing here imports torch."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.images import ImageReader, decode_rgb, resize
from utils.errors import UserError
from utils.reading import parse_json, read_bytes

ALL = ""  # the class of a region that is for all classes
WHOLE = (0, 0, 1, 1)  # the box of a photograph in shares of it: top, left, bottom, right
GRID = 2048  # pixels of each side on which polygons are drawn
EXAMPLE = '[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]], or {"CLASS": such a list}'
CLASS = "{clsname}"  # in a path: the class's name
PIECE = 4000  # characters of a text, of which a configuration holds no longer ones


class Roi:
    """A mask for each class, or one for all (ALL), stretched over the photograph, whatever its size.

    A pixel of the network's input is inside if everything lies inside that resizing mixes into it. What is outside never reaches
    the network: it is painted over.
    """

    def __init__(self, masks: Mapping[str, np.ndarray], path: str | None = None) -> None:
        """masks: by class, h x w bool of any size. path: of further masks, with `{clsname}`."""
        self.masks, self.path = dict(masks), path
        self.known: dict[tuple[str | None, int, int], np.ndarray] = {}

    @classmethod
    def read(cls, setting: str | Sequence[Sequence[str]], clsnames: Iterable[str] = ()) -> "Roi":
        """Of the key dataset.roi: a file, or what `to_list` gave. UserError for a class of `clsnames` without a region.

        The file is a mask, or a .json with polygons: a list of them, or a mapping of such lists by class; corners are [x, y], in
        shares of width and height. `{clsname}` in its path stands for each class.
        """
        if not isinstance(setting, str):
            return cls(dict(map(decode, setting)))
        roi = cls({}, setting) if CLASS in setting else cls(read_file(setting))
        for name in sorted(set(clsnames)):
            roi.mask(name)
        return roi

    def to_list(self) -> list[list[str]]:
        """For each class its name, then a PNG in base64 in pieces: so checkpoints and exported files hold it."""
        result = []
        for name, mask in self.masks.items():
            picture = cv2.imencode(".png", mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])[1]
            text = base64.b64encode(picture.tobytes()).decode()
            result.append([name, *(text[start : start + PIECE] for start in range(0, len(text), PIECE))])
        return result

    def mask(self, clsname: str | None) -> np.ndarray:
        """Raises UserError for a class that has none."""
        if self.path and clsname is not None and clsname not in self.masks:
            self.masks[clsname] = next(iter(read_file(self.path.replace(CLASS, clsname)).values()))
        name = ALL if clsname is None or clsname not in self.masks else clsname
        if name in self.masks:
            return self.masks[name]
        if clsname is None and len(self.masks) == 1:
            return next(iter(self.masks.values()))
        known = ", ".join(sorted(self.masks))
        if clsname is None:
            raise UserError(f"each class has a region of interest of its own: give the class (--class_name): {known}")
        raise UserError(f"dataset.roi has no region of the class '{clsname}', only of {known}; the whole image is a polygon too")

    def inside(self, clsname: str | None, size: Sequence[int]) -> np.ndarray:
        """H x W bool of `size`, the network's input. Raises UserError for a class without a region, or if no pixel is inside."""
        if (found := self.known.get((clsname, *size))) is not None:
            return found
        inside = self.part(clsname, size, WHOLE)
        if not inside.any():
            raise UserError(
                f"dataset.roi: nothing of the region of '{clsname or 'all classes'}' is left at {size[0]} x {size[1]}"
            )
        self.known[(clsname, *size)] = inside
        return inside

    def of_map(self, clsname: str | None, size: Sequence[int]) -> np.ndarray:
        """H x W bool of `size`, a map's. Where no pixel lies inside as a whole, those that touch the region: never nothing."""
        inside = self.part(clsname, size, WHOLE)
        return inside if inside.any() else self.part(clsname, size, WHOLE, least=1)

    def part(self, clsname: str | None, size: Sequence[int], box: Sequence[float], least: int = 255) -> np.ndarray:
        """H x W bool of `size`: of a part of the photograph, see WHOLE. least: of 255 parts, that lie inside of a pixel."""
        mask = self.mask(clsname)
        sides = box * np.tile(mask.shape, 2)  # in pixels of the mask
        corners = (sides[1], sides[0], sides[3], sides[2])
        return resize(mask * np.uint8(255), size, Image.Resampling.BILINEAR, corners) >= least


def decode(entry: Sequence[str]) -> tuple[str, np.ndarray]:
    """A class and its mask, h x w bool, from an item of `to_list`. Raises UserError for one that is damaged."""
    try:
        name, *pieces = entry
        return name, decode_rgb(base64.b64decode("".join(pieces), validate=True), f"the region of '{name}'")[..., 0] > 0
    except (binascii.Error, TypeError, ValueError):
        raise UserError("dataset.roi: a region of interest is damaged") from None


def read_file(path: str) -> dict[str, np.ndarray]:
    """The masks in a file, by class, or under ALL. Raises UserError naming it."""
    if Path(path).suffix.lower() != ".json":
        if not Path(path).is_file():
            raise UserError(f"dataset.roi: there is no file {path}")
        return {ALL: ImageReader(str(Path(path).parent)).read_mask(Path(path).name) > 0}
    try:
        content = parse_json(read_bytes(path))
        by_class = content if isinstance(content, dict) else {ALL: content}
        return {name: draw(polygons) for name, polygons in by_class.items()}
    except OSError as error:
        raise UserError(f"dataset.roi: {path} cannot be read ({error.strerror})") from None
    except (TypeError, ValueError):
        raise UserError(f"dataset.roi: {path} holds no polygons; they are written {EXAMPLE}, in shares of the image") from None


def draw(polygons: list[list[list[float]]]) -> np.ndarray:
    """Polygons in shares as a mask, GRID x GRID bool. Raises TypeError or ValueError for what is none."""
    mask = np.zeros((GRID, GRID), np.uint8)
    for polygon in polygons:
        corners = np.array(polygon, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or corners.min() < 0 or corners.max() > 1:
            raise ValueError("not a polygon in shares of the image")
        cv2.fillPoly(mask, [np.rint(corners * (GRID - 1)).astype(np.int32)], 1)
    if not mask.any():
        raise ValueError("no polygon")
    return mask > 0
