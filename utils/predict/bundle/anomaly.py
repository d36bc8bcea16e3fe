"""Score photographs with model.onnx beside this file: defective or good, how rare that is on good parts, and where.

python anomaly.py photo.jpg ...                 a line of JSON an image: file, score, decision, ratio, p, regions
python anomaly.py photo.jpg ... --masks masks   also masks/photo.jpg.png, 255 in regions, else 0

from anomaly import Predictor
result = Predictor()("photo.jpg")

This file needs only the packages of requirements.txt. An image that cannot be scored is named on stderr, and the exit code is 1
in the end; it is 2 where the model cannot be used.
"""

import argparse
import base64
import io
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MODEL = Path(__file__).with_name("model.onnx")
FORMAT_VERSION = "2"  # of the model's inputs, outputs and metadata
METADATA = ("input_size", "color_mode", "resample", "score", "score_option", "calibration", "roi", "fill", "tiles")  # used
TOP_SHARE = 0.01  # of the pixels, whose mean is the score top
AT_ONCE = 8  # tiles that go through the network together
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}
GREY = (9798, 19235, 3735)  # weights of R, G and B, in 1 / 32768


class ModelError(Exception):
    """The model cannot be used."""


class ImageError(Exception):
    """An image cannot be read or scored."""


@dataclass(frozen=True)
class Region:
    """A connected piece of the image, diagonal neighbours included. Lengths are pixels of the image."""

    x: int  # of the box's upper left corner
    y: int
    width: int
    height: int
    area: int
    share: float  # of the area that is inspected
    peak: float  # largest value of the anomaly map
    mean: float


@dataclass(frozen=True)
class Result:
    """Of one image, h x w. None: the model holds no threshold that says it."""

    score: float
    decision: str | None  # "defective" or "good"
    ratio: float | None  # score / threshold: above 1 is defective
    p: float | None  # the share of held-out good images that score as high or higher
    regions: list[Region] | None  # the largest first
    anomaly_map: np.ndarray = field(repr=False)  # h x w float32
    mask: np.ndarray | None = field(repr=False)  # h x w bool, true in regions


class Predictor:
    """The exported network and its thresholds, those of `class_name` or, without one, those for all classes together.

    `metadata`: what the model's file says of itself. Raises ModelError for a file that cannot be used, or an unknown class.
    """

    def __init__(self, model: str | Path = MODEL, class_name: str | None = None) -> None:
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in ("CUDAExecutionProvider", "CPUExecutionProvider") if provider in available]
        try:
            self.session = onnxruntime.InferenceSession(str(model), providers=providers)
            entries = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # each kind of damage has an exception of its own
            raise ModelError(f"{model}: missing, damaged or no ONNX file ({str(error).splitlines()[0]})") from None
        self.metadata = read_metadata(entries, model)
        self.takes_uint8 = self.session.get_inputs()[0].type == "tensor(uint8)"
        calibration = self.metadata["calibration"] or {"pooled": {}, "classes": {}}
        if class_name is not None and class_name not in calibration["classes"]:
            known = ", ".join(sorted(calibration["classes"])) or "none"
            raise ModelError(f"{model}: has no thresholds of the class '{class_name}'; its classes: {known}")
        thresholds = calibration["pooled"] if class_name is None else calibration["classes"][class_name]
        self.threshold: float | None = thresholds.get("threshold")  # a higher score is defective
        self.pixel_threshold: float | None = thresholds.get("pixel_threshold")  # a higher value of the map is in a region
        self.min_area: float = calibration.get("min_area", 0.0)  # share of the image's area that a region has at least
        self.roi = read_roi(self.metadata["roi"])  # the part of the image that is inspected
        tiles = self.metadata["tiles"] or {}
        self.tile, self.overlap = tiles.get("size"), tiles.get("overlap")  # how photographs are cut; None: they are not
        self.normal = np.array(thresholds.get("scores", ()))  # scores of held-out good images

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> Result:
        """image: a path, a PIL image, or uint8 h x w x 3 RGB (also h x w, grey, and h x w x 4 with alpha, which is dropped).

        Raises ImageError for one that cannot be read, or whose map is not finite.
        """
        rgb = read_rgb(image)
        score, anomaly_map, inside = self.score_tiles(rgb) if self.tile else self.score_whole(rgb)
        if not np.isfinite(anomaly_map).all():
            raise ImageError("its anomaly map holds values that are not finite")
        anomaly_map, inspected = resize_map(anomaly_map, *rgb.shape[:2]), 1.0
        if inside is not None:
            inspected = float(inside.mean())
            anomaly_map[resize_map(inside.astype(np.float32), *rgb.shape[:2]) <= 0.5] = 0
        decision = None if self.threshold is None else "defective" if score > self.threshold else "good"
        ratio = score / self.threshold if self.threshold is not None and self.threshold > 0 else None
        p = (np.count_nonzero(self.normal >= score) + 1) / (len(self.normal) + 1) if len(self.normal) else None
        mask, regions = None, None
        if self.pixel_threshold is not None:
            mask, regions = find_regions(anomaly_map, self.pixel_threshold, self.min_area, inspected)
        return Result(score, decision, ratio, p, regions, anomaly_map, mask)

    def score_whole(self, rgb: np.ndarray) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Score, map and inspected part (None: all), both H x W: float32, and bool. rgb: h x w x 3."""
        scores, maps = self.session.run(["score", "map"], {"image": self.prepare(rgb)[None]})
        return float(scores[0]), maps[0], None if self.roi is None else resize_mask(self.roi, *self.metadata["input_size"])

    def score_tiles(self, rgb: np.ndarray) -> tuple[float, np.ndarray, np.ndarray | None]:
        """As `score_whole`; the tiles' maps are blended where they overlap."""
        grid = (starts(*sides, self.overlap) for sides in zip(rgb.shape[:2], self.tile, strict=True))
        places = [place for place in product(*grid) if self.roi is None or self.inside(place, rgb.shape[:2]).any()]
        if not places:
            raise ImageError("none of its tiles shows anything of the region of interest")
        joined = None
        for start in range(0, len(places), AT_ONCE):
            batch = places[start : start + AT_ONCE]
            (maps,) = self.session.run(["map"], {"image": np.stack([self.cut(rgb, place) for place in batch])})
            joined = joined or JoinedMap(rgb.shape[:2], self.tile, places, maps.shape[1:])
            for place, one in zip(batch, maps, strict=True):
                joined.add(place, one)
        anomaly_map, inside = joined.map, None
        if self.roi is not None:
            inside = resize_mask(self.roi, *anomaly_map.shape)
            inside = inside if inside.any() else resize_mask(self.roi, *anomaly_map.shape, least=1)
            anomaly_map[~inside] = 0
        return image_score(anomaly_map, self.metadata["score"], self.metadata["score_option"], inside), anomaly_map, inside

    def cut(self, rgb: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        """The tile whose top and left are `place`, as the network takes it."""
        (top, left), (height, width) = place, self.tile
        image = self.prepare(mirrored(rgb[top : top + height, left : left + width], self.tile))
        if self.roi is None:
            return image
        fill = np.array(self.metadata["fill"]) / (1 if self.takes_uint8 else 255)
        return np.where(self.inside(place, rgb.shape[:2])[..., None], image, fill).astype(image.dtype)

    def inside(self, place: tuple[int, int], size: Sequence[int]) -> np.ndarray:
        """The inspected part of the tile at `place` of a photograph of `size`, as the network sees it."""
        seen = [min(side, length) for side, length in zip(self.tile, size, strict=True)]
        box = [start / length for start, length in zip(place, size, strict=True)]
        box += [(start + part) / length for start, part, length in zip(place, seen, size, strict=True)]
        wanted = self.metadata["input_size"]
        shares = zip(wanted, seen, self.tile, strict=True)
        return mirrored(resize_mask(self.roi, *(max(1, round(n * part / side)) for n, part, side in shares), box), wanted)

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """h x w x 3 uint8 RGB as the network takes it, H x W x 3: uint8, or float32 in 0..1."""
        if self.metadata["color_mode"] == "GRAY":  # before resizing, as in training
            grey = (rgb.astype(np.int32) @ np.array(GREY, np.int32) + (1 << 14)) >> 15  # h x w
            rgb = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
        height, width = self.metadata["input_size"]
        resized = np.asarray(Image.fromarray(rgb).resize((width, height), RESAMPLE[self.metadata["resample"]]))
        return resized if self.takes_uint8 else resized.astype(np.float32) / 255


def read_metadata(entries: dict[str, str], model: str | Path) -> dict[str, Any]:
    """The entries of the model's metadata. Raises ModelError where one that is used is missing."""
    version = entries.get("format_version")
    if version != FORMAT_VERSION:
        found = "no metadata of an exported network" if version is None else f"metadata of format {version}"
        raise ModelError(f"{model}: holds {found}, and this file needs format {FORMAT_VERSION}: export both again")
    missing = [name for name in METADATA if name not in entries]
    if missing:
        raise ModelError(f"{model}: its metadata have no entry '{missing[0]}': export it again")
    return {name: json.loads(entry) for name, entry in entries.items()}


def read_roi(entry: list[list[str]] | None) -> np.ndarray | None:
    """The region of interest, H x W bool; None: the whole image. entry: a PNG in base64, in pieces after the class's name."""
    if entry is None:
        return None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode("".join(entry[0][1:]))))) > 0


def resize_mask(mask: np.ndarray, height: int, width: int, box: Sequence[float] = (0, 0, 1, 1), least: int = 255) -> np.ndarray:
    """A part of a mask, bool, at height x width: true where `least` of 255 parts are. box: top, left, bottom, right in shares."""
    top, left, bottom, right = box * np.tile(mask.shape, 2)
    corners = (left, top, right, bottom)
    return np.asarray(Image.fromarray(mask * np.uint8(255)).resize((width, height), Image.Resampling.BILINEAR, corners)) >= least


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin on an axis: evenly spread, with at least this overlap; one where `length` is not longer than `side`."""
    count = math.ceil((max(length, side) - overlap) / (side - overlap))
    return np.rint(np.linspace(0, max(0, length - side), count)).astype(int).tolist()


def mirrored(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """h x w (x 3), continued by its mirror image below and to the right until it has `size`."""
    missing = [(0, side - length) for length, side in zip(picture.shape, size, strict=False)]
    return np.pad(picture, missing + [(0, 0)] * (picture.ndim - 2), mode="symmetric") if any(map(any, missing)) else picture


class JoinedMap:
    """The map of a photograph h x w, of the maps of its tiles. tile: h, w; places: their tops and lefts; shape: of their maps."""

    def __init__(
        self, photograph: Sequence[int], tile: Sequence[int], places: Sequence[tuple[int, int]], shape: Sequence[int]
    ) -> None:
        self.tile, self.shape = tile, shape
        heights, widths = (np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) for n in shape)
        self.weight = heights[:, None] * widths  # highest in a tile's middle
        axes = zip(photograph, tile, shape, strict=True)
        size = [max(1, round((length - side) * n / side) + n) for length, side, n in axes]
        self.map, self.total = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for place in places:
            part = self.total[self.window(place)]
            part += self.weight[: part.shape[0], : part.shape[1]]

    def window(self, place: tuple[int, int]) -> tuple[slice, ...]:
        """Where the map of the tile at `place` lies, to the nearest pixel."""
        corner = (round(start * n / side) for start, n, side in zip(place, self.shape, self.tile, strict=True))
        return tuple(slice(first, first + n) for first, n in zip(corner, self.shape, strict=True))

    def add(self, place: tuple[int, int], one: np.ndarray) -> None:
        window = self.window(place)
        part = self.map[window]
        seen = slice(part.shape[0]), slice(part.shape[1])
        part += self.weight[seen] / self.total[window] * one[seen]


def image_score(anomaly_map: np.ndarray, name: str, option: Any, inside: np.ndarray | None) -> float:
    """mean, std, top or max of a map, H x W, over what is inspected; option: the share of top, the window of max."""
    values = anomaly_map.ravel() if inside is None or name == "max" else anomaly_map[inside]
    if name == "top":
        count = max(1, math.floor(values.size * (option or TOP_SHARE)))
        return float(np.partition(values, -count)[-count:].mean(dtype=np.float64))
    if name != "max":
        return float(getattr(values, name)(dtype=np.float64))
    height, width = map(min, option or (1, 1), anomaly_map.shape)
    sums = np.pad(anomaly_map.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return float((windows / (height * width)).max()) if option else float(anomaly_map.max())


def read_rgb(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """An image as h x w x 3 uint8 RGB, turned as its EXIF data say: see Predictor. Raises ImageError."""
    try:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif not isinstance(image, Image.Image):
            with Image.open(image) as file:
                file.load()
                image = file
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of an unknown range")
        if image.mode.startswith("I"):  # 16 bits: the upper 8
            grey = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged file raises any of many kinds
        raise ImageError(f"cannot be read as an image ({error})") from None


def resize_map(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """H x W float32 at another size, bilinear, to the last bit as OpenCV's INTER_LINEAR rounds on processors with FMA."""
    left, right, share = neighbours(anomaly_map.shape[1], width)
    wide = anomaly_map.astype(np.float64)
    wide = (wide[:, left] + (wide[:, right] - wide[:, left]) * share).astype(np.float32).astype(np.float64)  # H x width
    above, below, share = neighbours(anomaly_map.shape[0], height)
    return (wide[above] + (wide[below] - wide[above]) * share[:, None]).astype(np.float32)


def neighbours(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `wanted` places on an axis: the two pixels of `size` that it lies between, and the second one's weight."""
    places = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    first = np.clip(np.floor(places), 0, size - 1).astype(int)
    return first, np.minimum(first + 1, size - 1), np.clip(places - first, 0, 1).astype(np.float32)


def find_regions(
    anomaly_map: np.ndarray, threshold: float, min_area: float, inspected: float = 1.0
) -> tuple[np.ndarray, list[Region]]:
    """The connected pieces above the threshold with at least the share `min_area` of the pixels: mask, and the largest first.

    inspected: the share of the pixels that is; the others do not count.

    Pieces of one size go from top to bottom, then from left to right.
    """
    height, width = anomaly_map.shape
    padded = np.zeros((height, width + 1), bool)  # no run goes over the end of a row
    above = np.greater(anomaly_map, threshold, out=padded[:, :width])
    starts, ends = np.flatnonzero(np.diff(padded.ravel(), prepend=False)).reshape(-1, 2).T
    if not len(starts):
        return above, []
    pieces = connect(starts, ends, width + 1)
    order = np.argsort(pieces, kind="stable")
    firsts = np.flatnonzero(np.diff(pieces[order], prepend=-1))  # of each piece's runs in that order
    lengths = ends - starts
    y, x = np.divmod(starts, width + 1)
    values, offsets = anomaly_map[above], np.cumsum(lengths) - lengths  # a run's values begin at its offset
    runs = [x, y, x + lengths, y + 1, lengths]
    runs += [np.maximum.reduceat(values, offsets), np.add.reduceat(values, offsets, dtype=np.float64)]
    joins = [np.minimum, np.minimum, np.maximum, np.maximum, np.add, np.maximum, np.add]
    joined = [join.reduceat(column[order], firsts) for join, column in zip(joins, runs, strict=True)]
    left, top, right, bottom, areas, peaks, sums = joined
    pixels = anomaly_map.size * inspected
    large = areas >= max(1, math.ceil(min_area * pixels - 1e-9))
    mask = np.zeros_like(above)
    mask[above] = np.repeat(large[pieces], lengths)
    sizes = (left, top, right - left, bottom - top, areas, areas / pixels, peaks, sums / areas)
    chosen = np.lexsort((left, top, -areas))[: np.count_nonzero(large)]
    return mask, [Region(*values) for values in zip(*(column[chosen].tolist() for column in sizes), strict=True)]


def connect(starts: np.ndarray, ends: np.ndarray, stride: int) -> np.ndarray:
    """The piece of each of N runs, N of 0, 1, ...; runs are places row * stride + column, in order, the end excluded.

    Each round merges pieces that touch; two rounds at least halve the pieces that still touch another, so the rounds are few.
    """
    firsts = np.searchsorted(ends, starts + stride)  # the first run of the next row that touches, and how many do
    counts = np.searchsorted(starts, ends + stride, side="right") - firsts
    one = np.repeat(np.arange(len(starts)), counts)
    other = np.arange(len(one)) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    roots = np.arange(len(starts))
    while len(one):
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(roots, further := roots[roots]):
            roots = further
        one, other = roots[one], roots[other]
        one, other = one[one != other], other[one != other]
    return (np.cumsum(roots == np.arange(len(roots))) - 1)[roots]


def score_files(predictor: Predictor, files: list[str], masks: Path | None) -> int:
    """Print a line of JSON for each file; returns the exit code, 1 if a file could not be scored."""
    code = 0
    for file in files:
        try:
            result = predictor(file)
            if masks:
                Image.fromarray(result.mask).save(masks / f"{Path(file).name}.png")
        except (ImageError, OSError) as error:
            message = f"error: {file}: {error}"
            print("".join(char if char.isprintable() else ascii(char)[1:-1] for char in message), file=sys.stderr)
            code = 1
            continue
        regions = None if result.regions is None else [asdict(region) for region in result.regions]
        numbers = {name: getattr(result, name) for name in ("score", "decision", "ratio", "p")}
        print(json.dumps({"file": file, **numbers, "regions": regions}), flush=True)
    return code


def open_masks(folder: Path, predictor: Predictor, files: list[str]) -> None:
    """Make the folder of masks. Raises ModelError where there are no regions, or two files' masks would have one name."""
    if predictor.pixel_threshold is None:
        raise ModelError("--masks needs regions, and the model holds no pixel threshold: calibrate it, and export it again")
    name, count = Counter(Path(file).name for file in files).most_common(1)[0]
    if count > 1:
        raise ModelError(f"--masks needs images of different names, and {count} are named {name}")
    folder.mkdir(parents=True, exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--class_name", metavar="CLASS", help="use this class's thresholds, not those of all classes")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="also write a mask an image into this folder")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata and large images
    try:
        predictor = Predictor(class_name=args.class_name)
        if args.masks:
            open_masks(args.masks, predictor, args.images)
    except (ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return score_files(predictor, args.images, args.masks)


if __name__ == "__main__":
    sys.exit(main())
