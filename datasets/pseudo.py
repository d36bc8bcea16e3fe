"""Artificial defects for training, where all images are normal (not part of the published method)."""

import cv2
import numpy as np

# A defect is one to three overlapping or scattered regions. Lengths are in pixels of the resized image.
MAX_REGIONS = 3
MIN_SIZE = 3.0  # of a region: the square root of its area as a rectangle; log-uniform
MAX_SIZE = 0.25  # relative to the square root of the image's area
LOG_ASPECT = 1.2  # limit of log(length / width): a region is up to 3.3 times as long as wide
CORNERS = (3, 6)  # of a polygon or line
MAX_LINE = 3  # width of a drawn line
NOISE_CELL = 8  # regions are broken up by noise of this wavelength

# What fills a region: another image; or this image rotated, scaled and shifted; or one of its colours
ZOOM = (0.7, 1.4)
SHIFT = 1 / 3  # relative to the image's size
CONTRAST = (0.6, 1.4)
BRIGHTNESS = 60  # of 255, up or down
OPACITY = (0.4, 1.0)
SIGMA = (0.3, 1.2)  # of the Gaussian blur of the edges

VISIBLE = 12  # of 255: the mask is where a channel changed by more
MIN_PIXELS = 6  # a defect with a smaller mask is drawn again
MAX_TRIES = 20


def paste_defect(image: np.ndarray, donor: np.ndarray | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `image`, H x W x 3 uint8, with a defect, and its mask, H x W bool: the pixels that visibly changed.

    donor, H x W x 3 uint8: another image to fill the defect from; None: `image` itself. A grey image and donor give a grey
    result. A mask has at least MIN_PIXELS, unless MAX_TRIES attempts all changed fewer; then it may be empty.
    """
    for _ in range(MAX_TRIES):
        regions = _draw_regions(*image.shape[:2], rng).astype(np.float32)
        opacity = rng.uniform(*OPACITY) if rng.random() < 0.5 else 1.0
        weight = opacity * cv2.GaussianBlur(regions, (0, 0), rng.uniform(*SIGMA))[..., None]  # H x W x 1
        filling = _make_filling(image, donor, rng)
        defective = np.rint(image + weight * (filling - image)).astype(np.uint8)
        mask = (
            cv2.inRange(cv2.absdiff(defective, image), (0,) * 3, (VISIBLE,) * 3) == 0
        )  # H x W; True if any channel is out of range
        if mask.sum() >= MIN_PIXELS:
            break
    return defective, mask


def _draw_regions(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """H x W uint8 in {0, 1}."""
    regions = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, MAX_REGIONS, endpoint=True)):
        region = _draw_region(height, width, rng)
        if rng.random() < 0.5:
            grid = rng.standard_normal((-(-height // NOISE_CELL), -(-width // NOISE_CELL)), np.float32)
            broken = region * (cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) > 0)
            region = broken if broken.sum() >= MIN_PIXELS else region
        regions |= region
    return regions


def _draw_region(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """An ellipse, a rectangle, a polygon or a bent line, in any direction: H x W uint8 in {0, 1}."""
    region = np.zeros((height, width), np.uint8)
    largest = max(MIN_SIZE, MAX_SIZE * np.sqrt(height * width))
    size = np.exp(rng.uniform(np.log(MIN_SIZE), np.log(largest)))
    stretch = np.exp(rng.uniform(-LOG_ASPECT, LOG_ASPECT) / 2)
    sides = np.maximum(2, (size * stretch, size / stretch))
    centre = rng.uniform(0, (width, height))
    kind = rng.integers(3)
    if kind == 0:
        cv2.ellipse(region, (centre, sides, rng.uniform(0, 180)), 1, cv2.FILLED)
    elif kind == 1:
        cv2.fillPoly(region, [cv2.boxPoints((centre, sides, rng.uniform(0, 180))).astype(np.int32)], 1)
    else:
        corners = rng.integers(*CORNERS, endpoint=True)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = sides * rng.uniform(0.4, 1, (corners, 1)) / 1.5
        points = (centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.int32)  # corners x 2
        if rng.random() < 0.5:
            cv2.polylines(region, [points], False, 1, int(rng.integers(1, MAX_LINE, endpoint=True)))
        else:
            cv2.fillPoly(region, [points], 1)
    return region


def _make_filling(image: np.ndarray, donor: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The picture inside the regions: H x W x 3 float32 in [0, 255]."""
    height, width = image.shape[:2]
    if donor is not None:
        filling = donor
    elif rng.random() < 0.5:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), rng.uniform(*ZOOM))
        turn[:, 2] += rng.uniform(-SHIFT, SHIFT, 2) * (width, height)
        filling = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
    else:
        filling = np.broadcast_to(image[rng.integers(height), rng.integers(width)], image.shape)
    filling = filling.astype(np.float32)
    if rng.random() < 0.5:
        filling = np.clip(filling * rng.uniform(*CONTRAST) + rng.uniform(-BRIGHTNESS, BRIGHTNESS), 0, 255)
    return filling
