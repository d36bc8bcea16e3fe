"""Thresholds for a chosen false-alarm rate, from the scores and maps of normal images that training has not seen.

Split conformal prediction: of n such images and one new normal image every rank of the new score is equally likely, whatever
the scores' distribution. Above the k-th smallest of the n lies a share of new normal images that is Beta(n + 1 - k, k)
distributed over calibrations, with the mean (n + 1 - k) / (n + 1). The pixel threshold follows in the same way from the level
of each image, the lowest pixel threshold at which it shows no region: as many good images show one as score above the threshold.

calibration.json lies beside the checkpoint that it is of. Nothing here imports torch.
"""

import bisect
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_text
from utils.reading import parse_json, read_bytes

NAME = "calibration.json"
CONFIDENCE = 0.95  # of every interval

log = logging.getLogger("uniad")


@dataclass(frozen=True)
class Threshold:
    """An image is called defective if its score is above `threshold`, a pixel if its value is above `pixel_threshold`."""

    threshold: float
    images: int  # normal images that it is from
    false_alarm_rate: tuple[float, float]  # the interval that holds the true rate of either
    pixel_threshold: float | None = None  # None: calibrated before there were regions; then there are no `scores` either
    scores: tuple[float, ...] = ()  # of those images, sorted

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Threshold":
        """Raises AttributeError, KeyError, TypeError or ValueError for what is none."""
        low, high = map(finite, entry["false_alarm_rate"])
        pixel = entry.get("pixel_threshold")
        values = (finite(entry["threshold"]), int(entry["images"]), (low, high))
        return cls(*values, None if pixel is None else finite(pixel), tuple(map(finite, entry.get("scores", ()))))

    def p_value(self, score: float) -> float | None:
        """The share of normal images, this one among them, that score as high or higher (conformal); None: not known."""
        higher = len(self.scores) - bisect.bisect_left(self.scores, score)
        return (higher + 1) / (len(self.scores) + 1) if self.scores else None


@dataclass(frozen=True)
class Calibration:
    """The content of calibration.json: the thresholds of one checkpoint."""

    score: str  # the image score that the thresholds are of: mean, std, max or top
    false_alarm_rate: float  # that was asked for
    checkpoint: str  # file name
    sha256: str  # of the file
    epoch: int | None
    images: str  # which images it is from, in words
    pooled: Threshold  # one threshold for all classes
    classes: dict[str, Threshold]
    min_area: float = 0.0  # smaller regions, as a share of the image's area, do not count
    typical: float = 0.0  # value of a normal pixel, where the colours of heat maps begin

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Calibration":
        """Raises KeyError, TypeError or ValueError for what is no calibration."""
        classes = {clsname: Threshold.from_dict(entry) for clsname, entry in content["classes"].items()}
        rate, min_area, typical = (finite(content.get(key, 0.0)) for key in ("false_alarm_rate", "min_area", "typical"))
        numbers = {"false_alarm_rate": rate, "min_area": min_area, "typical": typical}
        return cls(**{**content, **numbers, "pooled": Threshold.from_dict(content["pooled"]), "classes": classes})

    def of(self, class_name: str | None = None) -> Threshold:
        """A class's threshold, else the pooled one. Raises UserError for a class that has none."""
        if class_name is None:
            return self.pooled
        if class_name not in self.classes:
            raise UserError(f"the calibration has no class '{class_name}': its classes are {', '.join(sorted(self.classes))}")
        return self.classes[class_name]


def finite(value: float) -> float:
    """Raises ValueError for what is no finite number: no score is above NaN."""
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def calibrate(
    scores: np.ndarray, levels: np.ndarray, clsnames: Sequence[str], rate: float
) -> tuple[Threshold, dict[str, Threshold]]:
    """The pooled threshold and those of the classes, sorted.

    Of N normal images scores, levels (see regions.region_level) and class names; rate: of false alarms.
    """
    names = np.asarray(clsnames)
    chosen = {clsname: names == clsname for clsname in sorted(set(names.tolist()))}
    classes = {clsname: find_threshold(scores[here], levels[here], rate) for clsname, here in chosen.items()}
    return find_threshold(scores, levels, rate), classes


def find_threshold(scores: np.ndarray, levels: np.ndarray, rate: float) -> Threshold:
    """The ceil((n + 1)(1 - rate))-th smallest of n scores, or the largest where n is too small: see images_needed."""
    n = len(scores)
    k = min(n, math.ceil((n + 1) * (1 - exact(rate))))
    low, high = beta_interval(n + 1 - k, k)
    scores, levels = np.sort(scores), np.sort(levels)
    return Threshold(float(scores[k - 1]), n, (low, high), float(levels[k - 1]), tuple(scores.tolist()))


def images_needed(rate: float) -> int:
    """The fewest normal images whose largest score is a threshold for this false-alarm rate."""
    return math.ceil(1 / exact(rate)) - 1


def exact(rate: float) -> Fraction:
    """The number as it was written: 0.05 is one twentieth, so that products that are whole stay whole."""
    return Fraction(str(rate))


def beta_interval(a: float, b: float) -> tuple[float, float]:
    """The central interval of Beta(a, b)."""
    from scipy.special import betaincinv  # here: reading a calibration needs no scipy

    tail = (1 - CONFIDENCE) / 2
    return float(betaincinv(a, b, tail)), float(betaincinv(a, b, 1 - tail))


def binomial_interval(count: int, total: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a rate that showed `count` times in `total`."""
    low = beta_interval(count, total - count + 1)[0] if count > 0 else 0.0
    high = beta_interval(count + 1, total - count)[1] if count < total else 1.0
    return low, high


@dataclass(frozen=True)
class Rates:
    """What a threshold does to test images: how many good ones there are, and of them false alarms; defective ones, and found."""

    good: int
    false_alarms: int
    defective: int
    found: int


def rates_at(threshold: float, scores: np.ndarray, labels: np.ndarray) -> Rates:
    """scores: N; labels: N of {0, 1}."""
    called, defective = scores > threshold, labels != 0
    counts = (~defective, called & ~defective, defective, called & defective)
    return Rates(*(int(np.count_nonzero(chosen)) for chosen in counts))


def save_calibration(calibration: Calibration, checkpoint: str | Path) -> Path:
    """Write calibration.json into the checkpoint's folder, whole or not at all; returns its path."""
    path = Path(checkpoint).with_name(NAME)
    write_text(path, json.dumps(calibration.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return path


def read_calibration(path: str | Path) -> Calibration | None:
    """None where there is no such file. Raises UserError naming one that is no calibration."""
    try:
        return Calibration.from_dict(parse_json(read_bytes(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a calibration; write it again with tools/calibrate.py, or remove it") from None


def calibration_of(checkpoint: str | Path) -> Calibration | None:
    """The calibration beside a checkpoint; None, and a warning, where it is of another one."""
    path = Path(checkpoint).with_name(NAME)
    calibration = read_calibration(path)
    if calibration is None or calibration.sha256 == file_hash(checkpoint):
        return calibration
    other = f"another checkpoint ({calibration.checkpoint} after epoch {calibration.epoch})"
    log.warning("%s is of %s and is not used: run tools/calibrate.py again", path, other)
    return None


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hex. Raises UserError naming a file that cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
