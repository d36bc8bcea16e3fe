"""Metrics equal the golden values and scikit-learn, and depend on nothing but the values."""

import math

import cv2
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tests.helpers.golden_cases import CASES, GOLDEN
from utils.benchmark.metrics import SEVEN_METRICS, make_test_set, reference
from utils.errors import UserError
from utils.evaluation.metrics import evaluate_maps, image_scores

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
    for seed in range(3):
        assert golden_results(np.random.default_rng(seed).permutation(60)) == golden_results()


def one_class(maps: np.ndarray, masks: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
    labels = masks.any(axis=(1, 2)).astype(int) if labels is None else labels
    results = evaluate_maps(maps.astype(np.float32), masks, labels, ["a"] * len(maps), KINDS)
    return {kind: results[f"a_pixel_{kind}"] for kind in KINDS}


def random_case(rng: np.random.Generator, levels: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    masks = (rng.random((4, 7, 9)) < 0.15).astype(np.uint8)
    masks[0] = 0
    maps = (rng.integers(0, levels, masks.shape) + masks * rng.integers(0, 3, masks.shape)) * scale
    return maps.astype(np.float32), masks


def test_pixel_metrics_equal_sklearn_where_smooth_maps_have_ties() -> None:
    rng = np.random.default_rng(0)
    masks = (cv2.resize(rng.random((8, 8)), (64, 64)) > 0.75).astype(np.uint8)[None].repeat(6, axis=0)
    masks[:2] = 0
    maps = np.stack([cv2.resize(rng.random((8, 8)), (64, 64)) for _ in masks]) + 0.3 * masks
    maps = np.round(maps, 2).astype(np.float32)  # about 130 thresholds for 24,576 pixels
    results, truth, scores = one_class(maps, masks), masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert results["auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert results["ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert results["f1max"] == pytest.approx(np.max(2 * precision * recall / (precision + recall)), abs=1e-9)
    # The per-region overlap is the recall of pixels that weigh 1/area; scikit-learn maps the areas 0.045 and 0.3 to 0.5 and 1.
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            weight[numbers == number] = 1 / np.count_nonzero(numbers == number)
    partial = roc_auc_score(truth, scores, sample_weight=weights.ravel(), max_fpr=0.3)
    assert results["aupro"] == pytest.approx((0.045 + (2 * partial - 1) * 0.255) / 0.3, abs=1e-9)


def test_the_reference_of_the_benchmark_agrees() -> None:
    maps, masks, labels, clsnames = make_test_set({"a": {"test": {"good": 3, "crack": 5}}})
    results = evaluate_maps(maps, masks, labels, clsnames, SEVEN_METRICS)
    expected, _ = reference(maps, masks, labels)
    assert {key: results[f"a_{key}"] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert len(expected) == 7


@pytest.mark.parametrize("name", ["mean", "std", "max"])
def test_image_metrics_equal_sklearn(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3 == 0
    maps = (rng.integers(0, 4, (40, 1, 1)) + labels[:, None, None] * rng.integers(0, 2, (40, 1, 1))) * rng.random((1, 9, 9))
    scores = image_scores(maps.astype(np.float32), name)
    kinds = {kind: [{"name": name}] for kind in ("auc", "ap", "f1max")}
    results = evaluate_maps(maps.astype(np.float32), np.zeros(maps.shape, np.uint8), labels.astype(int), ["a"] * 40, kinds)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert len(set(scores.tolist())) < 6  # most are tied
    assert results[f"a_{name}_auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert results[f"a_{name}_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert results[f"a_{name}_f1max"] == pytest.approx(np.max(2 * precision * recall / (precision + recall)), abs=1e-9)


def test_a_rising_transformation_of_the_scores_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    maps, masks = random_case(rng, 30, 1.0)
    expected = one_class(maps, masks)
    for transformed in (maps**3, np.exp(maps / 4), maps * 1e30, maps - 1000, np.searchsorted(np.unique(maps), maps)):
        assert one_class(transformed, masks) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_an_error_with_its_index(value: float) -> None:
    maps, masks = random_case(np.random.default_rng(0), 1000, 1.0)
    maps[2, 3, 4] = value
    with pytest.raises(UserError, match=r"^anomaly map 2 \(class b\) holds values that are not finite"):
        evaluate_maps(maps, masks, masks.any(axis=(1, 2)), ["a", "a", "b", "b"], {"auc": [{"name": "mean"}]})


def test_inputs_are_left_as_they_are() -> None:
    maps, masks = random_case(np.random.default_rng(0), 1000, 1.0)
    before = maps.copy(), masks.copy()
    maps.flags.writeable = masks.flags.writeable = False
    one_class(maps, masks)
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


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


@pytest.mark.parametrize(("share", "count"), [(None, 4), (0.01, 4), (0.1, 48), (0.0021, 1), (1e-9, 1), (1.0, 480)])
def test_top_is_the_mean_of_the_highest_share_of_the_pixels_at_least_one(share: float | None, count: int) -> None:
    maps = np.random.default_rng(0).random((3, 20, 24), dtype=np.float32)
    maps[1] = np.round(maps[1] * 4)  # ties
    expected = [sum(sorted(m.astype(float).ravel(), reverse=True)[:count]) / count for m in maps]
    np.testing.assert_allclose(image_scores(maps, "top", share), expected, rtol=1e-7)


@pytest.mark.parametrize("window", [(1, 1), (2, 5), (16, 16), (20, 24)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_largest_window_mean_is_exact_to_float32_at_any_scale(window: tuple[int, int], scale: float) -> None:
    maps = (np.random.default_rng(0).random((3, 20, 24)) ** 8 * scale).astype(np.float32)
    expected = sliding_window_view(maps.astype(np.float64), window, axis=(1, 2)).mean(axis=(3, 4)).max(axis=(1, 2))
    np.testing.assert_allclose(image_scores(maps, "max", window), expected, rtol=1e-7)


def test_equal_windows_at_different_places_have_equal_means() -> None:
    rng = np.random.default_rng(0)
    patch = np.exp(rng.uniform(-20, 0, (16, 16))).astype(np.float32)  # of many magnitudes, so that sums in float64 are rounded
    patch[[0, -1]] += 1  # with bright edges, so that the window of the patch is the largest
    patch[:, [0, -1]] += 1
    maps = (1e-3 * np.exp(rng.uniform(-20, 0, (20, 60, 60)))).astype(np.float32)
    for image, (y, x) in zip(maps, rng.integers(0, 45, (20, 2)), strict=True):
        image[y : y + 16, x : x + 16] = patch
    assert len(set(image_scores(maps, "max", (16, 16)).tolist())) == 1


def test_a_window_is_no_larger_than_the_map() -> None:
    """Of a small photograph in tiles; a configuration's window may not be larger than the network's map."""
    maps = np.random.default_rng(0).random((1, 20, 24), np.float32)
    assert image_scores(maps, "max", (8, 30)) == image_scores(maps, "max", (8, 24))
    assert image_scores(maps, "max", (80, 30)) == pytest.approx(maps.mean())
