"""Speed and memory of the seven metrics on a test set of MVTec-AD's size, beside scikit-learn and a loop over thresholds."""

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from utils.metrics import AUPRO_LIMIT, evaluate_maps, image_scores

COUNTS = Path(__file__).resolve().parents[2] / "data/MVTec-AD/counts.json"
SIDE = 224  # of a map, in pixels
TOLERANCE = 1e-9
IMAGE = {"name": "max", "kwargs": {"avgpool_size": (16, 16)}}
PIXEL = {"name": "pixel"}
SEVEN_METRICS = {"auc": [IMAGE, PIXEL], "ap": [IMAGE, PIXEL], "f1max": [IMAGE, PIXEL], "aupro": [PIXEL]}
THRESHOLDS = 200  # of the loop that the per-region overlap is usually approximated by


@dataclass(frozen=True)
class Measurement:
    """Seconds, and bytes at the peak; the reference's share is that of the pixels it was timed on."""

    maps: int
    classes: int
    seconds: float
    peak: int
    reference_classes: int
    reference_share: float
    sklearn_seconds: float
    loop_seconds: float
    difference: float  # largest, of any metric of any class that the reference was run on


def benchmark_metrics(reference_classes: int | None = None) -> str:
    """Measure in a fresh process and return the table; with `reference_classes` the slow side does so many and is scaled up."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return format_measurement(pool.submit(measure, reference_classes).result())


def format_measurement(measured: Measurement) -> str:
    """The table: a row a way of computing, their ratio, and whether their numbers are equal."""
    sklearn, loop = (seconds / measured.reference_share for seconds in (measured.sklearn_seconds, measured.loop_seconds))
    scaled = f", scaled up from {measured.reference_classes} classes" if measured.reference_share < 1 else ""
    verdict = "within" if measured.difference <= TOLERANCE else "ABOVE"
    rows = [
        ("all seven metrics, exact", f"{measured.seconds:.2f} s", f"peak memory {measured.peak / 1e9:.2f} GB, maps included"),
        ("scikit-learn: AUROC, AP, PR curve", f"{sklearn:.1f} s", f"pixels and images{scaled}"),
        (f"loop of {THRESHOLDS} thresholds: PRO", f"{loop:.1f} s", f"approximate{scaled}"),
        ("ratio", f"{(sklearn + loop) / measured.seconds:.0f}x", "scikit-learn and loop to ours"),
        ("largest difference", f"{measured.difference:.0e}", f"{verdict} {TOLERANCE:.0e} (AUPRO: to a weighted ROC)"),
    ]
    title = f"{measured.maps} maps of {SIDE}x{SIDE}, {measured.maps * SIDE**2 / 1e6:.1f} M pixels, {measured.classes} classes"
    return "\n".join([title, *(f"  {name:<34}{value:>9}  {note}" for name, value, note in rows)])


def measure(reference_classes: int | None) -> Measurement:
    """Time this project's metrics, then the reference's, on the same maps in this process."""
    maps, masks, labels, clsnames = make_test_set(json.loads(COUNTS.read_text()))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        results = evaluate_maps(maps, masks, labels, clsnames, SEVEN_METRICS)
        times.append(time.perf_counter() - start)
    peak = peak_memory()

    classes = sorted(set(clsnames.tolist()))
    timed = classes[:reference_classes]
    seconds, differences = np.zeros(2), []
    for clsname in timed:
        chosen = clsnames == clsname
        expected, class_seconds = reference(maps[chosen], masks[chosen], labels[chosen])
        seconds += class_seconds
        differences += [abs(results[f"{clsname}_{key}"] - value) for key, value in expected.items()]
    return Measurement(
        maps=len(maps),
        classes=len(classes),
        seconds=median(times),
        peak=peak,
        reference_classes=len(timed),
        reference_share=float(np.isin(clsnames, timed).mean()),
        sklearn_seconds=float(seconds[0]),
        loop_seconds=float(seconds[1]),
        difference=float(max(differences)),
    )


def peak_memory() -> int:
    """Bytes that this process has had in memory at most."""
    import resource  # Unix only, and needed only here

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make_test_set(counts: dict[str, dict[str, dict[str, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maps NxHxW float32, masks NxHxW uint8, labels N, class names N, as many as `counts` says of each class's test images.

    Like the model's, a map is a 14x14 grid enlarged to the image: noise, and more where the mask has ellipses.
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
    """One class by other means: the seven metrics by `<name>_<kind>`, and the seconds of scikit-learn and of the PRO loop."""
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
    """The curve of per-region overlap as it is usually computed: THRESHOLDS x 2, false-positive rate and mean overlap."""
    curve = []
    for threshold in np.linspace(scores.max(), scores.min(), THRESHOLDS):
        above = scores >= threshold
        false_positives = np.count_nonzero(above & normal) / np.count_nonzero(normal)
        curve.append((false_positives, np.mean([above[region].mean() for region in regions])))
    return np.array(curve)


def weighted_aupro(scores: np.ndarray, truth: np.ndarray, regions: list[np.ndarray]) -> float:
    """AUPRO, exact, from scikit-learn: the per-region overlap is the recall of pixels that weigh 1/area."""
    weights = np.ones(scores.shape)
    for region in regions:
        weights[region] = 1 / len(region)
    standardised = roc_auc_score(truth, scores, sample_weight=weights, max_fpr=AUPRO_LIMIT)
    lowest, highest = AUPRO_LIMIT**2 / 2, AUPRO_LIMIT  # the areas that scikit-learn maps to 0.5 and 1
    return (lowest + (2 * standardised - 1) * (highest - lowest)) / AUPRO_LIMIT
