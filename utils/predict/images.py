"""An image from wherever it comes, as h x w x 3 uint8 RGB."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.errors import UserError


def to_rgb(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """image: a file, read as evaluation does; a PIL image, turned as its EXIF data say; or an array of uint8, h x w x 3 RGB,
    h x w x 4 with alpha, which is dropped, or h x w or h x w x 1, grey. Raises UserError saying what is wrong with it.
    """
    if isinstance(image, str | Path):
        return read_rgb(image)
    if isinstance(image, Image.Image):
        return from_pil(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        what = f"an array of {image.dtype}, {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is a path, a PIL image or an array, uint8, height x width x 3; not {what}")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] not in (3, 4):
        raise UserError(f"an image has 1, 3 or 4 channels in its last axis, not the shape {image.shape}")
    return np.ascontiguousarray(image[..., :3])


def read_rgb(path: str | Path) -> np.ndarray:
    """The image in a file, decoded as datasets.images does. Raises UserError naming a file that is missing or no image."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # h x w x 3, BGR, turned as EXIF says
    except cv2.error:  # an empty file, or a picture past OpenCV's limit of size
        image = None
    if image is None:
        raise UserError(f"{path}: is damaged or not an image that OpenCV can read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def from_pil(image: Image.Image) -> np.ndarray:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits
            grey = (np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"a PIL image that cannot be used: {error}") from None
