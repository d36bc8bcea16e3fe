"""From a decoded image and its mask to the tensors of a sample."""

from collections.abc import Sequence

import numpy as np
import torch
import torchvision.transforms
from PIL import Image
from torchvision.transforms import functional as F

from datasets.images import RESAMPLE, resize
from utils.errors import UserError


class Transform:
    """Resize, augment if a random generator is given, then scale to [0, 1] and normalise.

    input_size is (height, width); pixel_mean and pixel_std hold one number a channel, in the image's channel order, which
    is `color_mode`. crop: the size of the middle part that is used; None: all. colorjitter holds the arguments of
    `ColorJitter`; None turns it off.
    """

    def __init__(
        self,
        input_size: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        hflip: bool = False,
        vflip: bool = False,
        rotate: bool = False,
        colorjitter: dict | None = None,
        resample: str = "bilinear",
        color_mode: str = "RGB",
        crop: Sequence[int] | None = None,
    ) -> None:
        self.input_size, self.crop = tuple(input_size), tuple(crop or input_size)
        height, width = self.crop
        if rotate and height != width:
            raise UserError(f"rotate turns images by 90 degrees and needs a square input_size, not {height} x {width}")
        self.mean = torch.tensor(pixel_mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(pixel_std, dtype=torch.float32).view(3, 1, 1)
        self.hflip, self.vflip, self.rotate = hflip, vflip, rotate
        self.colorjitter = None if colorjitter is None else ColorJitter(**colorjitter)
        self.resample = RESAMPLE[resample]
        self.bgr = color_mode == "BGR"
        self.fill = paint(pixel_mean, color_mode)  # in the image's channel order

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """image h x w x 3 uint8, mask h x w uint8 or None (nothing marked), rng None: no augmentation.

        Returns the image, 3 x H x W float32, and the mask, 1 x H x W float32 in {0, 1}.
        """
        image, mask = self.arrays(image, mask, rng)
        return self.to_tensor(image), mask_to_tensor(mask)

    def arrays(
        self,
        image: np.ndarray,
        mask: np.ndarray | None,
        rng: np.random.Generator | None,
        inside: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As the call, but not yet normalised: the image, H x W x 3 uint8, and the mask, H x W uint8.

        inside: of input_size, the region of interest: what is outside is painted over, and marked nowhere; None: all is inside.
        """
        image, mask = self.resized(image, mask)
        if inside is not None:
            image, mask = np.where(inside[..., None], image, self.fill), mask * inside
        image, mask = map(self.middle, (image, mask))  # H x W x 3, H x W
        if rng is not None:
            image, mask = self._augment(image, mask, rng)
        return image, mask

    def resized(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask at input_size, before they are cropped; without a mask nothing is marked."""
        image = resize(image, self.input_size, self.resample)
        if mask is None:
            return image, np.zeros(self.input_size, np.uint8)
        return image, resize(mask, self.input_size, Image.Resampling.NEAREST)

    def middle(self, picture: np.ndarray) -> np.ndarray:
        """The part of a picture h x w, of any size, that a crop leaves."""
        shares = zip(picture.shape[:2], self.input_size, self.crop, strict=True)
        places = [((n - (kept := round(n * part / whole))) // 2, kept) for n, whole, part in shares]
        (top, h), (left, w) = places
        return picture[top : top + h, left : left + w]

    def to_tensor(self, image: np.ndarray) -> torch.Tensor:
        """H x W x 3 uint8 -> 3 x H x W float32, normalised."""
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)) / 255  # 3 x H x W
        return (image - self.mean) / self.std

    def _augment(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.hflip and rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if self.vflip and rng.random() < 0.5:
            image, mask = image[::-1], mask[::-1]
        if self.rotate:
            quarter_turns = rng.integers(4)
            image, mask = np.rot90(image, quarter_turns), np.rot90(mask, quarter_turns)
        if self.colorjitter is not None:
            # Hue and saturation have a meaning in RGB only.
            image = self.colorjitter(image[..., ::-1], rng)[..., ::-1] if self.bgr else self.colorjitter(image, rng)
        return image, mask


def paint(pixel_mean: Sequence[float], color_mode: str) -> np.ndarray:
    """The colour outside of a region of interest, 3 uint8: the mean, in the order of `color_mode`."""
    mean = np.full(3, np.mean(pixel_mean)) if color_mode == "GRAY" else np.asarray(pixel_mean)
    return np.rint(255 * mean).clip(0, 255).astype(np.uint8)


def mask_to_tensor(mask: np.ndarray) -> torch.Tensor:
    """H x W, anything above 0 marked -> 1 x H x W float32 in {0, 1}."""
    return torch.from_numpy((mask > 0)[None].astype(np.float32))


class ColorJitter:
    """Brightness, contrast, hue and saturation, each changed with probability `prob`, in random order.

    The four values are torchvision's: a factor from [1 - value, 1 + value], for hue a shift from [-value, value] of the circle.
    """

    def __init__(
        self, brightness: float = 0.1, contrast: float = 0.5, hue: float = 0.07, saturation: float = 0.5, prob: float = 0.5
    ) -> None:
        try:
            ranges = torchvision.transforms.ColorJitter(brightness, contrast, saturation, hue)
        except (TypeError, ValueError) as error:
            raise UserError(f"colorjitter: {error}") from None
        self.prob = prob
        changes = [
            (F.adjust_brightness, ranges.brightness),
            (F.adjust_contrast, ranges.contrast),
            (F.adjust_hue, ranges.hue),
            (F.adjust_saturation, ranges.saturation),
        ]
        self.changes = [(adjust, limits) for adjust, limits in changes if limits is not None]  # None: the value 0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """H x W x 3 uint8 RGB in and out."""
        picture = Image.fromarray(np.ascontiguousarray(image))
        for i in rng.permutation(len(self.changes)):
            adjust, limits = self.changes[i]
            if rng.random() < self.prob:
                picture = adjust(picture, rng.uniform(*limits))
        return np.asarray(picture)
