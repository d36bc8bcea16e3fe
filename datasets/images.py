"""Images and masks read from a folder with OpenCV."""

import os
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError

COLOR_MODES = ("RGB", "BGR", "GRAY")

# Loader workers are the parallelism; OpenCV's own threads would compete with them and can deadlock in a forked worker.
cv2.setNumThreads(0)


class ImageReader:
    """Reads the images and masks under `image_dir`; names are paths relative to it.

    color_mode is the order of an image's three channels: RGB, BGR, or GRAY (three equal channels).
    """

    def __init__(self, image_dir: str, color_mode: str = "RGB") -> None:
        if color_mode not in COLOR_MODES:
            raise UserError(f"color_mode {color_mode!r} is not one of {', '.join(COLOR_MODES)}")
        if not Path(image_dir).is_dir():
            raise UserError(f"{image_dir} is not a folder; set dataset.image_reader.kwargs.image_dir to where the images are")
        self.image_dir = Path(image_dir)
        self.color_mode = color_mode

    def read(self, name: str, color_mode: str | None = None) -> np.ndarray:
        """The image as H x W x 3 uint8, in `color_mode` or else in the reader's; a missing or unreadable one is a UserError."""
        image = self._decode(name, cv2.IMREAD_COLOR)  # H x W x 3, BGR; grey, 16-bit and alpha images included
        color_mode = color_mode or self.color_mode
        if color_mode == "RGB":
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if color_mode == "GRAY":
            return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return image

    def read_mask(self, name: str) -> np.ndarray:
        """The mask as H x W uint8: 1 wherever any colour channel is above 0; errors as in `read`."""
        # Colour and depth are kept, because both a grey conversion and a reduction to 8 bits can turn a small value into 0.
        mask = self._decode(name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # H x W x 3
        return (mask > 0).any(axis=2).astype(np.uint8)

    def exists(self, name: str) -> bool:
        return os.path.isfile(self.image_dir / name)

    def check_exists(self, name: str) -> None:
        """UserError where there is no such file."""
        if not self.exists(name):
            raise UserError(f"there is no file {name} in image_dir {self.image_dir}")

    def _decode(self, name: str, flags: int) -> np.ndarray:
        # From bytes: cv2.imread knows no Unicode paths on Windows and does not tell a missing file from a broken one.
        try:
            data = (self.image_dir / name).read_bytes()
        except FileNotFoundError:
            raise UserError(f"there is no file {name} in image_dir {self.image_dir}") from None
        except (OSError, ValueError) as error:  # ValueError: not a path that could be
            raise UserError(f"cannot read {name} in image_dir {self.image_dir}: {getattr(error, 'strerror', error)}") from None
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:  # an empty file, or a picture past OpenCV's limit of size
            image = None
        if image is None:
            raise UserError(f"{name} in image_dir {self.image_dir} is not an image that OpenCV can read; replace or remove it")
        return image
