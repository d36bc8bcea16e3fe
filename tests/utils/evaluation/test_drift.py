"""Drift: scores of good images that no longer look like the calibration's are noticed, and others are not."""

import numpy as np
import pytest

from utils.evaluation.calibration import Threshold, find_threshold
from utils.evaluation.drift import Drift


def normal(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(10 + shift, 1, count)


@pytest.fixture
def threshold() -> Threshold:
    scores = normal(300, 0)
    return find_threshold(scores, scores, 0.05)


def test_alike_scores_are_no_drift(threshold: Threshold) -> None:
    drift = Drift(threshold)
    alarms = [drift.add(score) for score in normal(3000, 1)]
    assert len(drift.values) == int((normal(3000, 1) <= threshold.threshold).sum()) // 100
    assert not any(alarms)
    assert "none (p " in drift.describe()


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_other_scores_are_noticed_within_a_window(threshold: Threshold, shift: float) -> None:
    drift = Drift(threshold)
    first = next(number for number, score in enumerate(normal(400, 2, shift)) if drift.add(score))
    assert 99 <= first < 200
    assert "have changed" in drift.describe()


def test_defects_are_no_drift(threshold: Threshold) -> None:
    drift = Drift(threshold)
    assert not any(drift.add(score) for score in normal(500, 3, 20.0))
    assert drift.describe() == "not known yet: 0 of 100 good images"


def test_without_scores_of_the_calibration_nothing_is_compared() -> None:
    assert not any(Drift(Threshold(100.0, 20, (0.0, 0.1))).add(score) for score in normal(200, 4))
