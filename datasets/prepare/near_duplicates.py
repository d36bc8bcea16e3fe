"""Near-duplicates, e.g. shots of a burst or copies of another size, and a split that keeps them on one side."""

import cv2
import numpy as np

# Of 255 bits. Measured on four sets of real parts and textures: copies in JPEG quality 60, of half the size, brighter or noisier
# differ by 0 to 8 bits in the median, two images of aligned parts by 12 or more. In the usual hash of 63 bits these are equal.
NEAR = 10


def fingerprint(image: np.ndarray) -> np.ndarray:
    """H x W x 3 uint8 -> 4 uint64: which of the lowest 16 x 16 frequencies lie above their median; brightness does not count."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(grey.astype(np.float32))[:16, :16].ravel()  # 256
    lowest[0] = -np.inf  # the mean
    return np.packbits(lowest > np.median(lowest[1:])).view(np.uint64)


def group(fingerprints: np.ndarray) -> np.ndarray:
    """N x 4 uint64 -> N numbers, the same for images that a chain of near-duplicates joins."""
    groups = np.arange(len(fingerprints))
    for i, own in enumerate(fingerprints):
        bits = np.bitwise_count(fingerprints[i + 1 :] ^ own).sum(axis=1)
        for j in np.flatnonzero(bits <= NEAR) + i + 1:
            groups[groups == groups[j]] = groups[i]
    return groups


def split(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which of N images are tested: whole groups drawn by the seed, about `share` of all and at least one if that can be."""
    wanted = max(1, round(share * len(groups))) if share else 0
    chosen: list[int] = []
    count = 0
    for number in np.random.default_rng(seed).permutation(np.unique(groups)):
        size = int((groups == number).sum())
        if count + size <= wanted and size < len(groups):
            chosen.append(number)
            count += size
    return np.isin(groups, chosen)
