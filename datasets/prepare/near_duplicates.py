"""Finds near-duplicates (shots of a burst, resized copies) and splits images so that they stay on one side."""

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

# Bits of 255. Measured on four sets of real parts and textures: copies in JPEG quality 60, of half the size, brighter or noisier
# differ by a median of 0 to 8 bits, two images of aligned parts by 12 or more. The usual 63-bit hash makes the latter equal.
NEAR = 10


def fingerprint(image: np.ndarray) -> np.ndarray:
    """H x W x 3 uint8 -> 4 uint64: which of the lowest 16 x 16 frequencies exceed their median; brightness is ignored."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(grey.astype(np.float32))[:16, :16].ravel()  # 256
    lowest[0] = -np.inf  # the mean
    return np.packbits(lowest > np.median(lowest[1:])).view(np.uint64)


def group(fingerprints: np.ndarray) -> np.ndarray:
    """N x 4 fingerprints -> N group numbers; images that a chain of near-duplicates connects share one."""
    groups = np.arange(len(fingerprints))
    for i, own in enumerate(fingerprints):
        bits = np.bitwise_count(fingerprints[i + 1 :] ^ own).sum(axis=1)
        for j in np.flatnonzero(bits <= NEAR) + i + 1:
            groups[groups == groups[j]] = groups[i]
    return groups


def represent(groups: np.ndarray, digests: list[bytes], earlier: Sequence[set[str]] = ()) -> list[bytes]:
    """For each image the digest of its group that a split by content goes by.

    It is the one that an earlier run went by, as `name_group` calls it, in the first set that has one; else the smallest: a
    re-encoded copy that is added moves nothing.
    """

    def rank(digest: bytes) -> tuple[int, bytes]:
        return next((place for place, known in enumerate(earlier) if name_group(digest) in known), len(earlier)), digest

    first: dict[int, bytes] = {}
    for number, digest in zip(groups.tolist(), digests, strict=True):
        first[number] = min(digest, first.get(number, digest), key=rank)
    return [first[number] for number in groups.tolist()]


def name_group(representative: bytes) -> str:
    """How lists call a group of near-duplicates."""
    return representative.hex()[:16]


def split(representatives: list[bytes], share: float, seed: int) -> np.ndarray:
    """N bool, True for test: whole groups, about `share` of all images, and at least one group where there are two.

    Each group's hash decides for itself, so images that come later move no others.
    """
    places = {
        digest: int.from_bytes(hashlib.sha256(b"%d %b" % (seed, digest)).digest()[:8], "big") for digest in {*representatives}
    }
    ranked = sorted(places, key=places.__getitem__) if share else []
    chosen = {digest for rank, digest in enumerate(ranked[:-1]) if rank == 0 or places[digest] < share * 2**64}
    return np.array([digest in chosen for digest in representatives])
