"""Speed and memory of the seven metrics on random maps, compared with scikit-learn and a loop over thresholds."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import cv2
import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from utils.benchmark.process import in_fresh_process
from utils.evaluation.metrics import AUPRO_LIMIT, evaluate_maps, image_scores
from utils.process.memory import keep_freed_memory, peak_megabytes

SIDE = 224  # of a map, pixels
IMAGE = {"name": "max", "kwargs": {"avgpool_size": (16, 16)}}
PIXEL = {"name": "pixel"}
SEVEN_METRICS = {"auc": [IMAGE, PIXEL], "ap": [IMAGE, PIXEL], "f1max": [IMAGE, PIXEL], "aupro": [PIXEL]}
THRESHOLDS = 200  # in the loop that usually approximates the per-region overlap

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # number of images by class, split (only "test" is read) and kind


def measure_metrics(counts: Counts) -> dict[str, Any]:
    """Time both sides, each in its own process, on as many 224x224 maps as `counts` says. Returns numbers, ready for JSON.

    peak_mb and reference_peak_mb include maps and masks; difference is the largest in any metric of any class.
    """
    results, ours = in_fresh_process(run_ours, counts)
    expected, theirs = in_fresh_process(run_reference, counts)
    seconds = theirs["sklearn_seconds"] + theirs["loop_seconds"]
    difference = float(max(abs(results[key] - value) for key, value in expected.items()))
    return ours | theirs | {"reference_seconds": seconds, "ratio": seconds / ours["seconds"], "difference": difference}


def run_ours(counts: Counts) -> tuple[dict[str, float], dict[str, Any]]:
    """The results of evaluate_maps, and what was measured."""
    keep_freed_memory()  # as tools do
    maps, masks, labels, clsnames = make_test_set(counts)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        results = evaluate_maps(maps, masks, labels, clsnames, SEVEN_METRICS)
        times.append(time.perf_counter() - start)
    counted = {"maps": len(maps), "classes": len(set(clsnames.tolist())), "pixels": maps.size}
    return results, {**counted, "seconds": median(times), "peak_mb": peak_megabytes()}


def run_reference(counts: Counts) -> tuple[dict[str, float], dict[str, float]]:
    """The same results for each class, and what was measured."""
    maps, masks, labels, clsnames = make_test_set(counts)
    expected, seconds = {}, np.zeros(2)
    for clsname in sorted(set(clsnames.tolist())):
        chosen = clsnames == clsname
        values, class_seconds = reference(maps[chosen], masks[chosen], labels[chosen])
        expected |= {f"{clsname}_{key}": value for key, value in values.items()}
        seconds += class_seconds
    sklearn_seconds, loop_seconds = seconds.tolist()
    measured = {"sklearn_seconds": sklearn_seconds, "loop_seconds": loop_seconds, "reference_peak_mb": peak_megabytes()}
    return expected, measured


def make_test_set(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maps NxHxW float32, masks NxHxW uint8, labels N and class names N for the test images in `counts`.

    As in the model, a map is a 14x14 grid enlarged to the image: noise, with higher values where the mask has ellipses.
    """
    rng = np.random.default_rng(133)
    kinds = [(clsname, kind) for clsname, splits in counts.items() for kind, n in splits["test"].items() for _ in range(n)]
    maps = np.empty((len(kinds), SIDE, SIDE), np.float32)
    masks = np.zeros(maps.shape, np.uint8)
    for image, mask, (_, kind) in zip(maps, masks, kinds, strict=True):
        if kind != "good":
            for _ in range(rng.integers(1, 4)):
                centre, axes = rng.integers(0, SIDE, 2).tolist(), rng.integers(2, 32, 2).tolist()
                cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
        grid = cv2.resize(mask.astype(np.float32), (14, 14), interpolation=cv2.INTER_AREA)
        grid = np.abs(1 + 0.3 * rng.standard_normal((14, 14)) + rng.normal(1, 0.5) * grid).astype(np.float32)
        image[:] = cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    labels = np.array([int(kind != "good") for _, kind in kinds])
    return maps, masks, labels, np.array([clsname for clsname, _ in kinds])


def reference(maps: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], tuple[float, float]]:
    """The seven metrics of one class by `<name>_<kind>`, and the seconds of scikit-learn and of the PRO loop."""
    scores = {"max": (labels, image_scores(maps, "max", (16, 16))), "pixel": (masks.ravel(), maps.ravel())}
    start = time.perf_counter()
    expected = {}
    for name, (truth, score) in scores.items():
        precision, recall, _ = precision_recall_curve(truth, score)
        expected[f"{name}_auc"] = roc_auc_score(truth, score)
        expected[f"{name}_ap"] = average_precision_score(truth, score)
        expected[f"{name}_f1max"] = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    sklearn_done = time.perf_counter()
    regions = find_regions(masks)
    loop_over_thresholds(maps.ravel(), masks.ravel() == 0, regions)
    loop_done = time.perf_counter()
    expected["pixel_aupro"] = weighted_aupro(maps.ravel(), masks.ravel(), regions)
    return expected, (sklearn_done - start, loop_done - sklearn_done)


def find_regions(masks: np.ndarray) -> list[np.ndarray]:
    """The pixels of every 8-connected region, as indices into masks.ravel(). masks: NxHxW."""
    regions = []
    for index, mask in enumerate(masks):
        numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [index * mask.size + np.flatnonzero(numbers == number) for number in range(1, count + 1)]
    return regions


def loop_over_thresholds(scores: np.ndarray, normal: np.ndarray, regions: list[np.ndarray]) -> np.ndarray:
    """The usual approximation of the per-region overlap curve. Returns THRESHOLDS x 2: false-positive rate and mean overlap."""
    curve = []
    for threshold in np.linspace(scores.max(), scores.min(), THRESHOLDS):
        above = scores >= threshold
        false_positives = np.count_nonzero(above & normal) / np.count_nonzero(normal)
        curve.append((false_positives, np.mean([above[region].mean() for region in regions])))
    return np.array(curve)


def weighted_aupro(scores: np.ndarray, truth: np.ndarray, regions: list[np.ndarray]) -> float:
    """Exact AUPRO from scikit-learn: the per-region overlap is the recall of pixels weighted by 1/area."""
    weights = np.ones(scores.shape)
    for region in regions:
        weights[region] = 1 / len(region)
    standardised = roc_auc_score(truth, scores, sample_weight=weights, max_fpr=AUPRO_LIMIT)
    lowest, highest = AUPRO_LIMIT**2 / 2, AUPRO_LIMIT  # the areas that scikit-learn maps to 0.5 and 1
    return (lowest + (2 * standardised - 1) * (highest - lowest)) / AUPRO_LIMIT
