"""What a score and a map mean: defective or good, how sure, where, and how large. Nothing here imports torch."""

from dataclasses import dataclass, field

import numpy as np

from utils.evaluation.calibration import Calibration, Threshold
from utils.evaluation.regions import Region, find_regions


@dataclass(frozen=True)
class Decision:
    """Of one image; None: no threshold, or no calibration, says it."""

    verdict: str | None  # "defective" or "good"
    ratio: float | None  # score / threshold: above 1 is defective
    p: float | None  # the share of held-out normal images that score as high or higher
    regions: list[Region] | None  # of the map, the largest first
    mask: np.ndarray | None = field(repr=False)  # HxW uint8, 1 in regions


@dataclass(frozen=True)
class Rule:
    """The thresholds that make decisions of scores and maps, and what they were chosen from."""

    threshold: float | None = None  # a higher score is defective
    pixel_threshold: float | None = None  # a higher value of the map belongs to a region
    min_area: float = 0.0  # share of the image's area that a region has at least
    normal: Threshold | None = None  # with the scores of held-out normal images
    scale: tuple[float, float] | None = None  # lowest and highest value of a heat map's colours; None: each map's own

    @classmethod
    def of(cls, calibration: Calibration, class_name: str | None = None) -> "Rule":
        """A class's rule, else the pooled one. Raises UserError for a class that the calibration does not have."""
        normal = calibration.of(class_name)
        scale = None
        if normal.pixel_threshold is not None:  # in the middle of the colours
            scale = (calibration.typical, 2 * normal.pixel_threshold - calibration.typical)
        return cls(normal.threshold, normal.pixel_threshold, calibration.min_area, normal, scale)

    def decide(self, score: float, anomaly_map: np.ndarray, inspected: float = 1.0) -> Decision:
        """anomaly_map: HxW float32, at the size in which regions are wanted; inspected: the share of it that is, 0 elsewhere."""
        verdict = None if self.threshold is None else "defective" if score > self.threshold else "good"
        ratio = score / self.threshold if self.threshold is not None and self.threshold > 0 else None
        mask, regions = None, None
        if self.pixel_threshold is not None:
            numbers, regions = find_regions(anomaly_map, self.pixel_threshold, self.min_area, inspected)
            mask = (numbers > 0).astype(np.uint8)
        return Decision(verdict, ratio, self.normal.p_value(score) if self.normal else None, regions, mask)
