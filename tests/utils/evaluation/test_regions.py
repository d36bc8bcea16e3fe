"""Regions of a map and what decides them, against plain searches."""

import numpy as np
import pytest

from utils.evaluation.calibration import Calibration, Threshold, find_threshold
from utils.evaluation.decisions import Rule
from utils.evaluation.regions import Region, find_regions, region_level


def random_map(seed: int, height: int = 17, width: int = 23) -> np.ndarray:
    """With ties, and with neighbours alike."""
    noise = np.random.default_rng(seed).integers(0, 9, (height, width)).astype(np.float32)
    return noise + np.roll(noise, 1, axis=0) + np.roll(noise, 1, axis=1)


def flood(anomaly_map: np.ndarray, threshold: float) -> list[set[tuple[int, int]]]:
    """The pieces above the threshold, by a plain search."""
    todo = set(map(tuple, np.argwhere(anomaly_map > threshold).tolist()))
    found = []
    while todo:
        piece, edge = set(), [todo.pop()]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            edge += near
        found.append(piece)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_area", [0.0, 0.01, 0.05, 0.9])
def test_regions_are_the_connected_pieces_that_are_large_enough(seed: int, min_area: float) -> None:
    anomaly_map = random_map(seed)
    numbers, regions = find_regions(anomaly_map, 17, min_area)
    pieces = [piece for piece in flood(anomaly_map, 17) if len(piece) >= min_area * anomaly_map.size]
    assert {tuple(pixel) for pixel in np.argwhere(numbers).tolist()} == set().union(*pieces)
    assert np.bincount(numbers.ravel(), minlength=1)[1:].tolist() == [region.area for region in regions]
    expected = set()
    for piece in pieces:
        ys, xs = zip(*piece, strict=True)
        values = [float(anomaly_map[pixel]) for pixel in piece]
        box = (min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
        expected.add((*box, len(piece), len(piece) / anomaly_map.size, max(values), round(float(np.mean(values)), 4)))
    found = [(*list(vars(region).values())[:-1], round(region.mean, 4)) for region in regions]
    assert set(found) == expected
    assert [region.area for region in regions] == sorted((region.area for region in regions), reverse=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_area", [0.0, 0.01, 0.05, 0.5, 0.9])
def test_the_level_is_the_lowest_threshold_without_a_region(seed: int, min_area: float) -> None:
    anomaly_map = random_map(seed)
    level = region_level(anomaly_map, min_area)
    assert not find_regions(anomaly_map, level, min_area)[1]
    below = [value for value in np.unique(anomaly_map) if value < level]
    assert below
    assert find_regions(anomaly_map, below[-1], min_area)[1]


def test_a_flat_map_has_its_value_as_level_and_no_region() -> None:
    flat = np.full((4, 5), 2.0, np.float32)
    assert region_level(flat, 0.1) == 2
    assert find_regions(flat, 2.0)[1] == []
    assert find_regions(flat, 1.0)[1] == [Region(0, 0, 5, 4, 20, 1.0, 2.0, 2.0)]


def test_as_many_good_images_show_a_region_as_the_rate_says() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.gamma(2, size=(8, 8)).astype(np.float32) for _ in range(1200)]
    levels = np.array([region_level(anomaly_map, 0.03) for anomaly_map in maps])
    scores = np.array([anomaly_map.max() for anomaly_map in maps])
    shown = []
    for start in range(0, 1200, 60):  # calibrated on 20, tried on 40
        found = find_threshold(scores[start : start + 20], levels[start : start + 20], 0.2)
        shown += [bool(find_regions(m, found.pixel_threshold, 0.03)[1]) for m in maps[start + 20 : start + 60]]
    assert np.mean(shown) == pytest.approx(1 - 17 / 21, abs=0.04)  # the 17th of 20


# --- decisions ---

NORMAL = Threshold(2.0, 4, (0.0, 0.5), pixel_threshold=1.5, scores=(0.5, 1.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("score", "verdict", "ratio", "p"),
    [(0.1, "good", 0.05, 1.0), (1.0, "good", 0.5, 0.8), (2.0, "good", 1.0, 0.6), (2.5, "defective", 1.25, 0.2)],
)
def test_a_decision_says_how_rare_the_score_is_on_good_images(score: float, verdict: str, ratio: float, p: float) -> None:
    rule = Rule.of(Calibration("max", 0.4, "ckpt", "", 1, "", NORMAL, {}, min_area=0.1, typical=0.5))
    anomaly_map = np.zeros((5, 6), np.float32)
    anomaly_map[1:3, 2:4] = 1.6
    anomaly_map[4, 0] = 9.0  # a speck
    decision = rule.decide(score, anomaly_map)
    assert (decision.verdict, decision.ratio, decision.p) == (verdict, pytest.approx(ratio), pytest.approx(p))
    assert [(region.x, region.y, region.area) for region in decision.regions] == [(2, 1, 4)]
    assert decision.mask.sum() == 4
    assert rule.scale == (0.5, 2.5)  # the pixel threshold is in the middle of the colours


def test_without_a_calibration_nothing_is_decided() -> None:
    decision = Rule().decide(3.0, np.ones((2, 2), np.float32))
    assert (decision.verdict, decision.ratio, decision.p, decision.regions, decision.mask) == (None,) * 5
    assert Rule(threshold=0.0).decide(1.0, np.ones((2, 2), np.float32)).ratio is None
