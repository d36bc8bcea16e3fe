"""What the service did, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from utils.evaluation.calibration import Threshold
from utils.evaluation.drift import ALARM, Drift

RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)  # of score to threshold, between the histogram's bins
SCORES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # the same without a threshold


class Metrics:
    """Counters of one service. normal: the pooled threshold; None: no calibration."""

    def __init__(self, normal: Threshold | None) -> None:
        self.registry = CollectorRegistry()
        buckets = [ratio * normal.threshold for ratio in RATIOS] if normal and normal.threshold > 0 else SCORES
        here = {"registry": self.registry}
        self.images = Counter("anomaly_images", "Images that were scored, by decision", ["decision"], **here)
        self.refused = Counter("anomaly_refused", "Requests without a decision, by HTTP status", ["status"], **here)
        self.latency = Histogram("anomaly_seconds", "From a request's image to its answer", **here)
        self.scores = Histogram("anomaly_score", "Image scores", buckets=buckets, **here)
        self.above = Gauge("anomaly_share_above_threshold", "Share of the images that were called defective", **here)
        self.drift_p = Gauge(
            "anomaly_drift_p", f"Of good images' last scores against the calibration's; below {ALARM}: changed", **here
        )
        self.drift = Drift(normal) if normal and normal.scores else None
        self.decided = self.defective = 0

    def count(self, score: float, verdict: str | None, seconds: float) -> None:
        """Of one image that was scored."""
        self.images.labels(verdict or "none").inc()
        self.latency.observe(seconds)
        self.scores.observe(score)
        if verdict is not None:
            self.decided += 1
            self.defective += verdict == "defective"
            self.above.set(self.defective / self.decided)
        if self.drift is not None:
            self.drift.add(score)
            self.drift_p.set(self.drift.values[-1] if self.drift.values else 1.0)

    def drift_text(self) -> str:
        return self.drift.describe() if self.drift is not None else "not known: no calibration"

    def text(self) -> bytes:
        return generate_latest(self.registry)
