"""Reading and resizing images: the one place for training, prediction and pictures. Nothing here imports torch."""

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.errors import UserError
from utils.limits import PIXELS
from utils.reading import is_inside, read_bytes

COLOR_MODES = ("RGB", "BGR", "GRAY")
ORIENTATION = 0x0112  # a tag of EXIF
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}

Picture: TypeAlias = str | Path | Image.Image | np.ndarray  # see to_rgb

warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata
Image.MAX_IMAGE_PIXELS = None  # see reduction
# Loader workers are the parallelism; OpenCV's own threads would compete with them and can deadlock in a forked worker.
cv2.setNumThreads(0)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our own errors say what is wrong with a file
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet, too


def read_rgb(path: str | Path, name: str | None = None, max_pixels: int = PIXELS) -> np.ndarray:
    """The image in a file, H x W x 3 uint8 RGB, turned as its EXIF data say; grey, 16-bit and alpha images included.

    A JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its size. Raises UserError, which calls the
    file `name`, by default its path, for one that is missing, not an image, too large, or does not fit in memory.
    """
    image = _decode(path, cv2.IMREAD_COLOR, name, max_pixels)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def to_rgb(image: Picture) -> np.ndarray:
    """Any image as h x w x 3 uint8 RGB: a file, a PIL image (turned as its EXIF data say), or an array.

    An array is uint8: h x w x 3 RGB, h x w x 4 with alpha, which is dropped, or h x w or h x w x 1 grey. Raises UserError
    for anything else.
    """
    if isinstance(image, str | Path):
        return read_rgb(image)
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        what = f"an array of {image.dtype}, {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is a path, a PIL image or an array, uint8, height x width x 3; not {what}")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] not in (3, 4):
        raise UserError(f"an image has 1, 3 or 4 channels in its last axis, not the shape {image.shape}")
    return np.ascontiguousarray(image[..., :3])


def convert_color(rgb: np.ndarray, color_mode: str) -> np.ndarray:
    """H x W x 3 uint8 RGB in a mode of COLOR_MODES, H x W x 3; GRAY has three equal channels."""
    if color_mode == "BGR":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    if color_mode == "GRAY":
        return cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return rgb


def resize(image: np.ndarray, size: Sequence[int], resample: Image.Resampling, box: Sequence[float] | None = None) -> np.ndarray:
    """An image or a mask, h x w (x 3) uint8, at another size, (H, W). box: left, top, right, bottom of the part; None: all.

    PIL's filters smooth what they shrink; OpenCV's and PyTorch's would give the network other pixels.
    """
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), resample, box))


def shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    """An image or a map, h x w (x 3), with at most `longest` pixels on the longer side: a copy, for drawing."""
    h, w = picture.shape[:2]
    scale = min(1.0, longest / max(h, w))
    return cv2.resize(picture, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)


def count_frames(path: str | Path | BinaryIO) -> int:
    """How many pages or frames the file holds; only the first is ever read. 1 where PIL cannot tell."""
    with suppress(Exception), Image.open(path) as file:  # a damaged file raises any of many kinds
        return getattr(file, "n_frames", 1)
    return 1


class ImageReader:
    """Reads the images and masks in the folder `image_dir`; names are paths relative to it.

    color_mode is the order of an image's three channels: RGB, BGR, or GRAY (three equal channels). max_pixels: see read_rgb.
    allow_outside: names may be absolute, or lead out of `image_dir` by "..".
    """

    def __init__(self, image_dir: str, color_mode: str = "RGB", max_pixels: int = PIXELS, allow_outside: bool = False) -> None:
        if color_mode not in COLOR_MODES:
            raise UserError(f"color_mode {color_mode!r} is not one of {', '.join(COLOR_MODES)}")
        if not Path(image_dir).is_dir():
            raise UserError(
                f"{image_dir} is not a folder; set dataset.image_reader.kwargs.image_dir to the --root of tools/prepare_data.py"
            )
        self.image_dir = Path(image_dir)
        self.color_mode, self.max_pixels, self.allow_outside = color_mode, max_pixels, allow_outside

    def read(self, name: str, color_mode: str | None = None) -> np.ndarray:
        """The image, H x W x 3 uint8, in `color_mode`, by default the reader's. Raises UserError as `read_rgb` does."""
        rgb = read_rgb(self.image_dir / name, self._full_name(name), self.max_pixels)
        return convert_color(rgb, color_mode or self.color_mode)

    def read_mask(self, name: str) -> np.ndarray:
        """The mask, H x W uint8, 1 where marked. Raises UserError as `read_rgb` does.

        Marked is every value above the lowest one, 0 in most files, of colours, palette indices or an alpha channel; in a file of
        lossy compression every value above half of the largest. UserError for colours of which none is the darkest.
        """
        # Colour and depth are kept, because both a grey conversion and a reduction to 8 bits can turn a small value into 0.
        path, flags = self.image_dir / name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        colors = _decode(path, flags, self._full_name(name), self.max_pixels)  # H x W x 3
        mask, alpha = colors.max(axis=2), None  # H x W
        with suppress(Exception), Image.open(path) as file:  # where PIL cannot, OpenCV decides
            if file.mode == "P":
                mask = np.asarray(ImageOps.exif_transpose(file))
            elif file.mode in ("LA", "RGBA"):
                alpha = np.asarray(ImageOps.exif_transpose(file).getchannel("A"))
        if alpha is not None and alpha.shape == mask.shape and alpha.min() < alpha.max():
            mask = alpha if mask.min() == mask.max() else np.where(alpha, mask, mask.min())
        marked = mask > mask.max() / 2 if _is_lossy(path) else mask > (mask.min() if mask.min() < mask.max() else 0)
        if marked.all() and np.ptp(colors, axis=(0, 1)).max() > mask.max() / 2:
            raise UserError(f"{self._full_name(name)}: a mask whose colours are all equally bright; make its background black")
        return marked.astype(np.uint8)

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of what `read` gives, from the head of the file where that says it. Raises UserError as `read`."""
        with suppress(Exception), Image.open(self.image_dir / name) as file:  # a damaged file raises any of many kinds
            tags = file.tag_v2 if file.format == "TIFF" else file.getexif() if "exif" in file.info else {}
            known = file.format in ("BMP", "JPEG", "MPO", "PNG", "TIFF", "WEBP") and tags.get(ORIENTATION, 1) == 1
            if known and file.width * file.height <= self.max_pixels:
                return file.height, file.width
        return self.read(name).shape[:2]

    def exists(self, name: str) -> bool:
        return os.path.isfile(self.image_dir / name)

    def check_inside(self, name: str) -> None:
        """Raises UserError for a name that leads out of the folder, if that is not allowed."""
        if not self.allow_outside and not is_inside(name):
            how = "set dataset.image_reader.kwargs.allow_outside=True to read it"
            raise UserError(f"{name} leads out of image_dir {self.image_dir}; {how}")

    def check_exists(self, name: str) -> None:
        """Raises UserError if there is no such file."""
        if not self.exists(name):
            raise UserError(f"there is no file {self._full_name(name)}")

    def _full_name(self, name: str) -> str:
        return f"{name} in image_dir {self.image_dir}"


def _is_lossy(path: Path) -> bool:
    """Whether the file is a JPEG, JPEG 2000, AVIF or lossy WebP, whose values are not exactly those that were saved."""
    start = path.read_bytes()[:16]
    return start.startswith(b"\xff\xd8") or start[4:12] in (b"jP  \r\n\x87\n", b"ftypavif") or start[8:16] == b"WEBPVP8 "


def decode_rgb(data: bytes, name: str, max_pixels: int = PIXELS) -> np.ndarray:
    """`read_rgb` of a file's content."""
    image = _decode_bytes(data, cv2.IMREAD_COLOR, name, max_pixels)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def reduction(data: bytes, name: str, max_pixels: int) -> int:
    """By how much to divide the sides of an image for it to have at most `max_pixels`. UserError if its format cannot."""
    try:
        with Image.open(io.BytesIO(data)) as file:  # reads the head only
            (width, height), is_jpeg = file.size, file.format in ("JPEG", "MPO") and "progressive" not in file.info
    except Exception:  # a damaged file raises any of many kinds; OpenCV decides
        return 1
    for factor in (1, 2, 4, 8) if is_jpeg else (1,):  # of a progressive one the decoder holds the whole in memory
        if width * height <= max_pixels * factor**2:
            return factor
    key = "dataset.image_reader.kwargs.max_pixels"
    raise UserError(f"{name} has {width:,} x {height:,} pixels, more than {max_pixels:,} in all ({key})")


def _decode(path: str | Path, flags: int, name: str | None, max_pixels: int) -> np.ndarray:
    """H x W x 3 BGR. From bytes: cv2.imread knows no Unicode paths on Windows and cannot tell a missing file from a bad one."""
    name = name or str(path)
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {name}") from None
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None
    return _decode_bytes(data, flags, name, max_pixels)


def _decode_bytes(data: bytes, flags: int, name: str, max_pixels: int) -> np.ndarray:
    factor = reduction(data, name, max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | (8 * factor if factor > 1 else 0))  # IMREAD_REDUCED_*
    except (cv2.error, MemoryError):  # an empty file, or more than OpenCV's limit or the memory
        image = None
    if image is None:
        raise UserError(f"{name} is not an image that OpenCV can read; replace or remove it")
    return image


def _pil_to_rgb(image: Image.Image) -> np.ndarray:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits
            grey = (np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"a PIL image that cannot be used: {error}") from None
