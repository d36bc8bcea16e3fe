"""Metrics equal the golden values, scikit-learn and brute force, whatever the scores look like."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tests.golden_cases import CASES, GOLDEN
from utils.metrics import evaluate_maps, image_scores

CASE = CASES["eval"]
PIXEL = [{"name": "pixel"}]
KINDS = {"auc": PIXEL, "ap": PIXEL, "f1max": PIXEL, "aupro": PIXEL}


def golden_results(order: np.ndarray | None = None) -> dict[str, float]:
    maps, masks = GOLDEN["eval/preds"].astype(np.float32), GOLDEN["eval/masks"]
    order = np.arange(len(maps)) if order is None else order
    labels = masks.any(axis=(1, 2)).astype(int)
    metrics = {**dict.fromkeys(("auc", "ap", "f1max"), CASE["metrics"]), "aupro": PIXEL}
    return evaluate_maps(maps[order], masks[order], labels[order], np.array(CASE["clsname"])[order], metrics)


def test_every_number_equals_the_golden_value() -> None:
    results = golden_results()
    assert set(results) == set(CASE["expected"])
    for key, value in CASE["expected"].items():
        assert results[key] == pytest.approx(value, abs=1e-9), key


def test_the_order_of_images_does_not_matter() -> None:
    assert golden_results(np.random.default_rng(0).permutation(60)) == pytest.approx(golden_results(), abs=1e-12)


def one_class(maps: np.ndarray, masks: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
    labels = masks.any(axis=(1, 2)).astype(int) if labels is None else labels
    results = evaluate_maps(maps.astype(np.float32), masks, labels, ["a"] * len(maps), KINDS)
    return {kind: results[f"a_pixel_{kind}"] for kind in KINDS}


def brute_force_aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Every threshold, every region by flood fill, piecewise-linear area to 0.3."""
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
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        above = maps >= threshold
        fpr = float((above & (masks == 0)).sum() / (masks == 0).sum())
        points.append((fpr, float(np.mean([np.mean([above[p] for p in region]) for region in regions]))))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= 0.3:
            break
        if x1 > 0.3:
            x1, y1 = 0.3, y0 + (y1 - y0) * (0.3 - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / 0.3


def random_case(rng: np.random.Generator, levels: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    masks = (rng.random((4, 7, 9)) < 0.15).astype(np.uint8)
    masks[0] = 0
    maps = (rng.integers(0, levels, masks.shape) + masks * rng.integers(0, 3, masks.shape)) * scale
    return maps.astype(np.float32), masks


@pytest.mark.parametrize(("levels", "scale"), [(2, 1.0), (5, 1.0), (10**6, 1e-30), (10**6, 1e24), (3, 1e30)])
def test_pixel_metrics_equal_sklearn_and_brute_force_with_ties_and_extremes(levels: int, scale: float) -> None:
    for seed in range(5):
        maps, masks = random_case(np.random.default_rng(seed), levels, scale)
        results = one_class(maps, masks)
        truth, scores = masks.ravel(), maps.ravel()
        precision, recall, _ = precision_recall_curve(truth, scores)
        f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
        assert results["auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
        assert results["ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
        assert results["f1max"] == pytest.approx(f1, abs=1e-9)
        assert results["aupro"] == pytest.approx(brute_force_aupro(maps, masks), abs=1e-9)


def test_constant_maps_say_nothing() -> None:
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[1, 1, 1] = 1
    results = one_class(np.full(masks.shape, 3.0), masks)
    assert results["auc"] == pytest.approx(0.5)
    assert results["aupro"] == pytest.approx(0.15)


def test_regions_that_touch_at_a_corner_are_one() -> None:
    masks = np.zeros((1, 6, 6), np.uint8)
    masks[0, 1, 1] = masks[0, 2, 2] = masks[0, 5, 5] = 1
    maps = np.zeros((1, 6, 6))
    maps[0, 1, 1] = 1
    # one of two regions is half found before any false positive
    expected = brute_force_aupro(maps, masks)
    assert one_class(maps, masks)["aupro"] == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.25 + 0.75 * 0.15)


def test_an_auroc_below_one_half_is_reported_as_it_is() -> None:
    maps, masks = random_case(np.random.default_rng(0), 1000, 1.0)
    assert one_class(maps, masks)["auc"] + one_class(-maps, masks)["auc"] == pytest.approx(1)
    assert one_class(-maps - 2000.0 * masks, masks)["auc"] == pytest.approx(0)


def test_a_defective_image_without_mask_counts_for_the_image_but_not_for_pixels() -> None:
    rng = np.random.default_rng(0)
    maps, masks = random_case(rng, 1000, 1.0)
    hidden = np.full((1, 7, 9), 5000.0, np.float32)
    more_maps, more_masks = np.concatenate([maps, hidden]), np.concatenate([masks, np.zeros((1, 7, 9), np.uint8)])
    labels = np.append(masks.any(axis=(1, 2)).astype(int), 1)
    assert one_class(more_maps, more_masks, labels) == pytest.approx(one_class(maps, masks))
    metrics = {"auc": [{"name": "max"}]}
    with_hidden = evaluate_maps(more_maps, more_masks, labels, ["a"] * 5, metrics)["a_max_auc"]
    assert with_hidden == pytest.approx(roc_auc_score(labels, more_maps.max(axis=(1, 2))))


def test_a_class_with_one_label_has_nan_and_is_left_out_of_the_mean() -> None:
    maps, masks = random_case(np.random.default_rng(0), 1000, 1.0)
    labels = masks.any(axis=(1, 2)).astype(int)
    good = maps[:1]
    results = evaluate_maps(
        np.concatenate([maps, good]),
        np.concatenate([masks, masks[:1]]),
        np.append(labels, 0),
        [*"aaaa", "b"],
        {"auc": [*PIXEL, {"name": "std"}]},
    )
    assert math.isnan(results["b_pixel_auc"])
    assert math.isnan(results["b_std_auc"])
    assert results["mean_pixel_auc"] == results["a_pixel_auc"]


def test_image_scores_follow_their_definitions() -> None:
    maps = np.random.default_rng(0).random((3, 20, 24), dtype=np.float32)
    np.testing.assert_allclose(image_scores(maps, "mean"), [m.astype(float).mean() for m in maps])
    np.testing.assert_allclose(image_scores(maps, "std"), [m.astype(float).std() for m in maps])
    np.testing.assert_allclose(image_scores(maps, "max"), [m.max() for m in maps])
    windows = [[m[y : y + 16, x : x + 8].mean() for y in range(5) for x in range(17)] for m in maps]
    np.testing.assert_allclose(image_scores(maps, "max", (16, 8)), np.max(windows, axis=1), rtol=1e-6)
