"""What may be wrong with images and masks, found by reading each of them once."""

import hashlib
import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from datasets.images import ImageReader
from datasets.lists import Record
from datasets.prepare.near_duplicates import fingerprint
from datasets.prepare.scan import Found
from utils.errors import UserError

ALL_BUT_BLACK = 16  # of 255: a 12-bit camera's 16-bit file, read at 8 bits, stays below


@dataclass(frozen=True)
class Checked:
    """What reading an image and its mask showed; `problem` and `mask_problem` are what makes one of them unusable."""

    digest: bytes = b""  # of the file's content
    fingerprint: np.ndarray | None = None
    black: bool = False
    empty_mask: bool = False
    problem: str | None = None
    mask_problem: str | None = None


def check_images(found: Found, workers: int) -> dict[str, Checked]:
    """For each image by its filename what reading it showed; a progress bar on a terminal."""
    reader = ImageReader(str(found.root), color_mode="BGR")
    records = list(found.records())
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:  # decoding releases the interpreter's lock
        warnings.simplefilter("ignore")  # what PIL thinks of a file's metadata
        checked = pool.map(lambda record: _check(record, found.parts_of_mask(record), reader), records)
        checked = list(tqdm(checked, "reading", len(records), unit=" images", leave=False, disable=None))
    return {record["filename"]: result for record, result in zip(records, checked, strict=True)}


def read_joined_mask(reader: ImageReader, parts: Iterable[str]) -> np.ndarray:
    """H x W uint8, 1 where any of the masks is above 0; UserError where they are unequally large."""
    masks = {name: reader.read_mask(name) for name in parts}
    if len({mask.shape for mask in masks.values()}) > 1:
        sizes = ", ".join(f"{name} {mask.shape[1]} x {mask.shape[0]}" for name, mask in masks.items())
        raise UserError(f"the masks of one image are unequally large: {sizes} pixels")
    return np.maximum.reduce(list(masks.values()))


def _check(record: Record, parts: list[str], reader: ImageReader) -> Checked:
    name = record["filename"]
    try:
        reader.check_exists(name)
        data = (reader.image_dir / name).read_bytes()
        _check_complete(name, data)
        image = reader.read(name)  # H x W x 3
    except UserError as error:
        return Checked(problem=str(error))
    except OSError as error:
        return Checked(problem=f"{name} cannot be read ({error.strerror})")
    shown = {
        "digest": hashlib.sha256(data).digest(),
        "fingerprint": fingerprint(image),
        "black": bool(image.max() < ALL_BUT_BLACK),
    }
    try:
        mask = read_joined_mask(reader, parts) if parts else None
        if mask is not None:
            _check_size(name, image, record["maskname"], mask)
    except UserError as error:
        return Checked(**shown, mask_problem=str(error))
    return Checked(**shown, empty_mask=mask is not None and not mask.any())


def _check_complete(name: str, data: bytes) -> None:
    """UserError for a file that is cut short or damaged: OpenCV 4 decodes such a JPEG without a word and leaves the rest grey."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return  # a format or a size that PIL does not take: OpenCV decides
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} is cut short or damaged ({error})") from None


def _check_size(name: str, image: np.ndarray, maskname: str, mask: np.ndarray) -> None:
    if mask.shape == image.shape[:2]:
        return
    sizes = "{1} x {0}, its image {name} {3} x {2}".format(*mask.shape, *image.shape, name=name)
    turned = mask.shape == image.shape[1::-1]
    hint = "; an image is turned as its EXIF data say, its mask must be too" if turned else ""
    raise UserError(f"mask {maskname} is {sizes} pixels{hint}")
