"""Whether the scores of good images still look like those of the calibration: has the camera, or the product, changed?"""

from dataclasses import dataclass, field

from utils.evaluation.calibration import Threshold

WINDOW = 100  # images that are compared at a time
ALARM = 0.001  # a smaller p says that something has changed; by chance one window in a thousand does


@dataclass
class Drift:
    """Compares each window of scores with the calibration's by the two-sample Kolmogorov–Smirnov test.

    Only images that were not called defective enter, on either side: defects are no drift.
    """

    normal: Threshold
    window: int = WINDOW
    values: list[float] = field(default_factory=list)  # p of each window so far
    scores: list[float] = field(default_factory=list, repr=False)  # of the window that fills

    def add(self, score: float) -> bool:
        """Whether this score ends a window whose scores have changed."""
        if score > self.normal.threshold or not self.normal.scores:
            return False
        self.scores.append(score)
        if len(self.scores) < self.window:
            return False
        from scipy.stats import ks_2samp  # here: prediction without windows needs no scipy

        expected = [score for score in self.normal.scores if score <= self.normal.threshold]
        self.values.append(float(ks_2samp(self.scores, expected).pvalue))
        self.scores.clear()
        return self.changed

    @property
    def changed(self) -> bool:
        """Whether the last window looks different."""
        return bool(self.values) and self.values[-1] < ALARM

    def describe(self) -> str:
        """In words."""
        if not self.values:
            return f"not known yet: {len(self.scores)} of {self.window} good images"
        state = (
            "the scores of good images have changed: look at camera and product, or calibrate again" if self.changed else "none"
        )
        return f"{state} (p {self.values[-1]:.2g}, the last of {len(self.values)} windows of {self.window} good images)"
