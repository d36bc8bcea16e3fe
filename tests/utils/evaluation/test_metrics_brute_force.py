"""Pixel metrics equal their definitions at every threshold, and scikit-learn, on the cases where quick methods go wrong."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from utils.evaluation.metrics import evaluate_maps

PIXEL = [{"name": "pixel"}]
KINDS = {"auc": PIXEL, "ap": PIXEL, "f1max": PIXEL, "aupro": PIXEL}


def pixel_metrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    labels = masks.any(axis=(1, 2)).astype(int)
    results = evaluate_maps(maps, masks, labels, ["a"] * len(maps), KINDS)
    return {kind: results[f"a_pixel_{kind}"] for kind in KINDS}


def assert_exact(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    results, truth, scores = pixel_metrics(maps, masks), masks.ravel(), maps.ravel()
    assert results == pytest.approx(brute_force(maps, masks), abs=1e-9)
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert results["auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert results["ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert results["f1max"] == pytest.approx(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)), abs=1e-9)
    return results


def find_regions(masks: np.ndarray) -> list[set[tuple[int, int, int]]]:
    """The 8-connected regions by flood fill, each a set of (image, y, x)."""
    regions = []
    for index, mask in enumerate(masks):
        todo = {(int(y), int(x)) for y, x in np.argwhere(mask)}
        while todo:
            region, edge = set(), [todo.pop()]
            while edge:
                y, x = edge.pop()
                region.add((index, y, x))
                around = {(y + dy, x + dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2)} & todo
                todo -= around
                edge += around
            regions.append(region)
    return regions


def brute_force(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """AUROC over all pairs; the others from what lies at or above every threshold."""
    positives, negatives = maps[masks == 1], maps[masks == 0]
    wins = (positives[:, None] > negatives).sum() + (positives[:, None] == negatives).sum() / 2
    regions = find_regions(masks)
    precision, recall, curve = [], [0.0], [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        above = maps >= threshold
        true_positives, false_positives = int((above & (masks == 1)).sum()), int((above & (masks == 0)).sum())
        precision.append(true_positives / (true_positives + false_positives))
        recall.append(true_positives / len(positives))
        curve.append((false_positives / len(negatives), float(np.mean([np.mean([above[p] for p in r]) for r in regions]))))
    return {
        "auc": wins / len(positives) / len(negatives),
        "ap": sum(p * (r1 - r0) for p, (r0, r1) in zip(precision, itertools.pairwise(recall), strict=True)),
        "f1max": max(2 * p * r / (p + r) if p else 0.0 for p, r in zip(precision, recall[1:], strict=True)),
        "aupro": area_to_limit(curve) / 0.3,
    }


def area_to_limit(curve: list[tuple[float, float]]) -> float:
    """Area under straight lines between the points, up to 0.3."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 >= 0.3:
            break
        if x1 > 0.3:
            x1, y1 = 0.3, y0 + (y1 - y0) * (0.3 - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area


def random_masks(rng: np.random.Generator, share: float = 0.15) -> np.ndarray:
    masks = (rng.random((4, 7, 9)) < share).astype(np.uint8)
    masks[0] = 0
    return masks


def random_maps(rng: np.random.Generator, masks: np.ndarray, levels: int) -> np.ndarray:
    return rng.integers(0, levels, masks.shape) + masks * rng.integers(0, 3, masks.shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("levels", "scale"), [(2, 1), (5, 1), (3, 1e30), (10**6, 1e30), (10**6, 1e-30), (5, -1), (5, 1e-44)])
def test_with_and_without_ties_at_any_scale(levels: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = random_masks(rng)
    maps = (random_maps(rng, masks, levels) * scale).astype(np.float32)
    assert_exact(maps, masks)


def test_scores_from_tiny_to_huge_of_both_signs_in_one_map() -> None:
    rng = np.random.default_rng(0)
    masks = random_masks(rng)
    scores = np.array([-1e30, -1.0, -1e-30, -0.0, 0.0, 1e-44, 1e-30, 1.0, np.nextafter(np.float32(1), 2), 1e30], np.float32)
    maps = rng.choice(scores, masks.shape)
    assert_exact(maps, masks)


def test_minus_zero_is_zero() -> None:
    rng = np.random.default_rng(0)
    masks = random_masks(rng)
    maps = rng.choice(np.array([-1, 0, 1], np.float32), masks.shape)
    signed = np.where((maps == 0) & (rng.random(maps.shape) < 0.5), np.float32(-0.0), maps)
    assert np.signbit(signed[signed == 0]).any()
    assert pixel_metrics(signed, masks) == pixel_metrics(maps, masks)


def test_constant_maps() -> None:
    masks = random_masks(np.random.default_rng(0))
    maps = np.full(masks.shape, 3.0, np.float32)
    results = assert_exact(maps, masks)
    assert results["auc"] == 0.5
    assert results["aupro"] == pytest.approx(0.15)  # the diagonal, to 0.3


@pytest.mark.parametrize("ahead", [1.0, -1.0])
def test_scores_that_separate_perfectly_or_not_at_all(ahead: float) -> None:
    rng = np.random.default_rng(0)
    masks = random_masks(rng)
    maps = (rng.random(masks.shape) + 10 * ahead * masks).astype(np.float32)
    results = assert_exact(maps, masks)
    assert results["auc"] == (1.0 if ahead > 0 else 0.0)
    assert results["aupro"] == pytest.approx(1.0 if ahead > 0 else 0.0)


def test_regions_of_one_pixel_weigh_as_much_as_large_ones() -> None:
    rng = np.random.default_rng(1)
    masks = np.zeros((2, 12, 12), np.uint8)
    masks[0, 0:5, 0:5] = masks[0, 11, 11] = masks[0, 0, 11] = masks[1, 6, 6] = 1
    maps = (rng.random(masks.shape) + 0.4 * masks).astype(np.float32)
    assert_exact(maps, masks)
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 0:5, 0:5] = 1  # one of four regions is found before any false positive
    assert pixel_metrics(maps, masks)["aupro"] == pytest.approx(0.25 + 0.75 * 0.15)


def test_regions_that_touch_at_a_corner_are_one() -> None:
    masks = np.zeros((1, 6, 6), np.uint8)
    masks[0, 1, 1] = masks[0, 2, 2] = masks[0, 5, 5] = 1
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 1, 1] = 1
    assert_exact(maps, masks)
    # one of two regions is half found before any false positive
    assert pixel_metrics(maps, masks)["aupro"] == pytest.approx(0.25 + 0.75 * 0.15)


def test_regions_at_the_same_place_in_two_images_are_two() -> None:
    masks = np.zeros((3, 6, 6), np.uint8)
    masks[0, 2:4, 2:4] = masks[1, 2:4, 2:5] = 1
    maps = np.random.default_rng(0).integers(0, 9, masks.shape).astype(np.float32)
    assert len(find_regions(masks)) == 2
    assert_exact(maps, masks)


def test_images_that_are_defective_all_over() -> None:
    rng = np.random.default_rng(0)
    masks = random_masks(rng, share=0.8)
    masks[1:3] = 1
    maps = random_maps(rng, masks, 9).astype(np.float32)
    assert_exact(maps, masks)
    maps, masks = maps[1:3], masks[1:3]
    assert all(math.isnan(value) for value in pixel_metrics(maps, masks).values())  # no pixel is normal


@pytest.mark.parametrize("normals", [3, 10, 20, 1000])
def test_thresholds_at_and_across_the_limit_of_the_false_positive_rate(normals: int) -> None:
    for false_positives in (0, normals * 3 // 10, normals * 3 // 10 + 1, normals):
        masks = np.zeros((1, 1, normals + 4), np.uint8)
        masks[0, 0, -4:] = 1
        maps = np.zeros(masks.shape, np.float32)
        maps[0, 0, :false_positives] = 2
        maps[0, 0, -4:] = [3, 2, 1, 0]
        assert_exact(maps, masks)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int16, np.int64, np.uint8])
def test_maps_of_other_types_are_compared_as_they_are(dtype: type) -> None:
    rng = np.random.default_rng(0)
    masks = random_masks(rng)
    maps = random_maps(rng, masks, 20).astype(dtype)
    if dtype is np.float64:
        maps = 1 + maps * 1e-15  # equal, were they rounded to float32
    assert_exact(maps, masks)
