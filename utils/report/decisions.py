"""What the calibrated thresholds decide, for the person who decides: a sentence a class."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from utils.evaluation.calibration import Calibration
from utils.report.result_folder import Scores


@dataclass
class Sentence:
    """What the threshold of a class does to its test images."""

    clsname: str
    good: int
    alarms: int  # good images that are called defective
    defective: int
    missed: int
    kinds: list[tuple[str, int, int]] = field(default_factory=list)  # of defect: name, missed, images; the most missed first
    smallest: float | None = None  # % of the image that the smallest defect covers which is found; None: not known

    @property
    def missed_share(self) -> float:
        return self.missed / self.defective if self.defective else 0.0


def sentences(scores: Scores, calibration: Calibration) -> list[Sentence]:
    """Of each class that has a threshold, those that miss most first."""
    found = []
    for clsname, threshold in calibration.classes.items():
        chosen = np.flatnonzero(scores.clsnames == clsname)
        labels, called = scores.labels[chosen], scores.scores[calibration.score][chosen] > threshold.threshold
        good, defective = labels == 0, labels == 1
        if not len(chosen):
            continue
        kinds: dict[str, list[bool]] = defaultdict(list)
        for place in np.flatnonzero(defective):
            kinds[PurePosixPath(scores.filenames[chosen[place]]).parent.name].append(not called[place])
        by_kind = sorted(((kind, sum(misses), len(misses)) for kind, misses in kinds.items()), key=lambda k: (-k[1] / k[2], k[0]))
        areas = scores.defects[chosen][defective & called] if scores.defects is not None else np.array([])
        areas = areas[areas > 0]  # without a mask the area is not known
        counts = (int(np.count_nonzero(which)) for which in (good, good & called, defective, defective & ~called))
        found.append(Sentence(clsname, *counts, by_kind, float(areas.min()) if len(areas) else None))
    return sorted(found, key=lambda sentence: (-sentence.missed_share, sentence.clsname))
