"""Reads every image and mask once and records what is wrong with it."""

import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from datasets.images import ImageReader, count_frames, reduction
from datasets.lists import Record
from datasets.prepare.near_duplicates import fingerprint
from datasets.prepare.scan import Scan, by_class
from utils.errors import UserError
from utils.reading import read_bytes

ALMOST_FULL = 0.8  # of a mask's pixels are marked
ALMOST_BLACK = 16  # of 255: a 16-bit file of a 12-bit camera stays below when it is read at 8 bits


@dataclass(frozen=True)
class Checked:
    """What reading an image and its mask showed; `problem` and `mask_problem` say why one of them cannot be used."""

    digest: bytes = b""  # SHA-256 of the file
    fingerprint: np.ndarray | None = None
    black: bool = False
    empty_mask: bool = False
    full_mask: bool = False  # nearly
    two_values: bool = False  # as a mask has
    frames: int = 1  # or pages, of which only the first is read
    problem: str | None = None
    mask_problem: str | None = None


def check_images(scan: Scan, workers: int) -> dict[str, Checked]:
    """Read all images and masks; results by the image's filename. Shows a progress bar on a terminal."""
    reader = ImageReader(str(scan.root), color_mode="BGR")
    records = list(scan.records())
    with ThreadPoolExecutor(workers) as pool:  # decoding releases the GIL
        checked = pool.map(lambda record: _check(record, scan.parts_of_mask(record), reader), records)
        checked = list(tqdm(checked, "reading", len(records), unit=" images", leave=False, disable=None))
    results = {record["filename"]: result for record, result in zip(records, checked, strict=True)}
    thresholded = _thresholded_classes(scan, results)
    for name in (record["filename"] for record in records if record["clsname"] not in thresholded):
        if results[name].two_values:
            problem = f"{name} holds two values only: it looks like a mask; move it to a folder ground_truth, or remove it"
            results[name] = Checked(problem=problem)
    return results


def _thresholded_classes(scan: Scan, results: dict[str, Checked]) -> set[str]:
    """Classes whose masks lie elsewhere, and whose photographs mostly hold two values: they are that way, and no masks."""
    with_masks = {record["clsname"] for record in scan.records() if record.get("maskname")}
    shares = {
        clsname: np.mean([results[record["filename"]].two_values for record in records])
        for clsname, records in by_class(scan.train).items()
    }
    return {clsname for clsname, share in shares.items() if clsname in with_masks and share > 0.5}


def problems(scan: Scan, checked: dict[str, Checked]) -> list[str]:
    """A line for each image and mask that cannot be used, sorted by the image's name."""
    results = [checked[record["filename"]] for record in sorted(scan.records(), key=lambda record: record["filename"])]
    return [problem for result in results for problem in (result.problem, result.mask_problem) if problem]


def read_joined_mask(reader: ImageReader, parts: Iterable[str]) -> np.ndarray:
    """H x W uint8, 1 where any of the masks is marked; UserError where their sizes differ."""
    masks = {name: reader.read_mask(name) for name in parts}
    if len({mask.shape for mask in masks.values()}) > 1:
        sizes = ", ".join(f"{name} {mask.shape[1]} x {mask.shape[0]}" for name, mask in masks.items())
        raise UserError(f"the masks of one image are of different sizes: {sizes} pixels")
    return np.maximum.reduce(list(masks.values()))


def _check(record: Record, parts: list[str], reader: ImageReader) -> Checked:
    name = record["filename"]
    try:
        reader.check_exists(name)
        data = read_bytes(reader.image_dir / name)
        if reduction(data, name, reader.max_pixels) == 1:
            _check_complete(name, data)
        image = reader.read(name)  # H x W x 3
    except UserError as error:
        return Checked(problem=str(error))
    except OSError as error:
        return Checked(problem=f"{name} cannot be read ({error.strerror})")
    checked = Checked(
        hashlib.sha256(data).digest(),
        fingerprint(image),
        black=bool(image.max() < ALMOST_BLACK),
        two_values=_holds_two_values(image),
        frames=count_frames(io.BytesIO(data)),
    )
    if not parts:
        return checked
    try:
        mask = read_joined_mask(reader, parts)
        _check_size(name, image, record["maskname"], mask)
    except UserError as error:
        return replace(checked, mask_problem=str(error))
    return replace(checked, empty_mask=not mask.any(), full_mask=bool(mask.mean() > ALMOST_FULL))


def _check_complete(name: str, data: bytes) -> None:
    """UserError for a truncated or damaged file: OpenCV 4 decodes such a JPEG silently and leaves the rest grey."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return  # PIL does not support this format or size: OpenCV decides
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} is cut short or damaged ({error})") from None


def _holds_two_values(image: np.ndarray) -> bool:
    """Whether it has two values only, or two far apart with the few between them that JPEG or resizing add."""
    pixels = image.reshape(-1, 3)
    others = pixels[(pixels != pixels[0]).any(axis=1)]
    counts = np.bincount(pixels[:, 1], minlength=256)
    second, first = np.argsort(counts)[-2:]
    is_mask = abs(int(first) - int(second)) > 100 and counts[[first, second]].sum() > 0.9 * len(pixels) and counts[second] > 8
    return bool(is_mask or (len(others) and (others == others[0]).all()))


def _check_size(name: str, image: np.ndarray, maskname: str, mask: np.ndarray) -> None:
    if mask.shape == image.shape[:2]:
        return
    sizes = "{1} x {0}, its image {name} {3} x {2}".format(*mask.shape, *image.shape, name=name)
    turned = mask.shape == image.shape[1::-1]
    hint = "; an image is turned as its EXIF data say, its mask must be too" if turned else ""
    raise UserError(f"mask {maskname} is {sizes} pixels{hint}")
