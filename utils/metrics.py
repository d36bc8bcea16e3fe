"""Detection metrics: exact, pure functions on arrays. Equal scores are one threshold throughout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

AUPRO_LIMIT = 0.3  # false-positive rate up to which the per-region overlap is integrated


@dataclass(frozen=True)
class Counts:
    """What lies at or above each threshold, from the highest to the lowest: arrays over thresholds, and the totals."""

    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: int
    negatives: int
    order: np.ndarray  # of all scores, from the highest
    ends: np.ndarray  # position in `order` of the last score of each threshold


def count_at_thresholds(scores: np.ndarray, labels: np.ndarray) -> Counts:
    """Sort once; every metric here follows from the counts. scores: N; labels: N of {0, 1}."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    true_positives = np.cumsum(labels[order], dtype=np.int64)[ends]
    false_positives = ends + 1 - true_positives
    return Counts(true_positives, false_positives, int(true_positives[-1]), int(false_positives[-1]), order, ends)


def auroc(counts: Counts) -> float:
    """Area under the receiver operating characteristic, as it is: below 0.5 where scores rank the wrong way."""
    tpr = np.append(0.0, counts.true_positives / counts.positives)
    fpr = np.append(0.0, counts.false_positives / counts.negatives)
    return float(np.trapezoid(tpr, fpr))


def average_precision(counts: Counts) -> float:
    """Precision at each threshold, weighted by the step in recall."""
    steps = np.diff(counts.true_positives, prepend=0) / counts.positives
    return float(np.sum(steps * counts.true_positives / (counts.ends + 1)))


def f1_max(counts: Counts) -> float:
    """The largest F1 over all thresholds."""
    return float(np.max(2 * counts.true_positives / (counts.ends + 1 + counts.positives)))


def aupro(counts: Counts, masks: np.ndarray) -> float:
    """Per-region overlap, averaged over 8-connected regions, integrated to a false-positive rate of 0.3 and divided by it.

    masks: NxHxW of one class, in the order of the pixels that `counts` is of.
    """
    weights = np.zeros(masks.shape, dtype=np.float64)  # of a pixel: its share of its region
    regions = 0
    for mask, weight in zip(masks, weights, strict=True):
        if not mask.any():
            continue
        number, labelled, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        share = np.append(0.0, 1.0 / statistics[1:, cv2.CC_STAT_AREA])
        weight += share[labelled]
        regions += number - 1
    overlap = np.append(0.0, np.cumsum(weights.ravel()[counts.order])[counts.ends] / regions)
    fpr = np.append(0.0, counts.false_positives / counts.negatives)
    inside = np.searchsorted(fpr, AUPRO_LIMIT, side="right")
    at_limit = np.interp(AUPRO_LIMIT, fpr[inside - 1 : inside + 1], overlap[inside - 1 : inside + 1])
    return float(np.trapezoid(np.append(overlap[:inside], at_limit), np.append(fpr[:inside], AUPRO_LIMIT)) / AUPRO_LIMIT)


CURVE_METRICS = {"auc": auroc, "ap": average_precision, "f1max": f1_max}
METRIC_KINDS = (*CURVE_METRICS, "aupro")


def image_scores(maps: np.ndarray, name: str, avgpool_size: Sequence[int] | None = None) -> np.ndarray:
    """One score an image, N. maps: NxHxW; name: mean, std (of the population), or max, over `avgpool_size` windows' means."""
    if name == "mean":
        return maps.mean(axis=(1, 2), dtype=np.float64)
    if name == "std":
        return maps.std(axis=(1, 2), dtype=np.float64)
    if avgpool_size is None:
        return maps.max(axis=(1, 2))
    window = tuple(avgpool_size)
    return np.array([float(F.avg_pool2d(torch.from_numpy(image)[None], window, stride=1).max()) for image in maps])


def evaluate_maps(
    maps: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    clsnames: Sequence[str],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """Every number of a configuration's `evaluator.metrics`, by class and as the mean over classes.

    Args:
        maps: NxHxW float32, anomaly maps.
        masks: NxHxW of {0, 1}. A defective image whose mask is empty counts in image metrics and is left out of pixel metrics.
        labels: N of {0, 1}, the data set's.
        clsnames: N class names.
        metrics: by kind (auc, ap, f1max, aupro) a list of {"name": mean|std|max|pixel, "kwargs": {"avgpool_size"}}.

    Returns {"<class>_<name>_<kind>": value}, classes sorted, then "mean_<name>_<kind>". A class in which only one label occurs
    has nan and is left out of the mean.
    """
    labels, clsnames = np.asarray(labels), np.asarray(clsnames)
    wanted = [(kind, score["name"], (score.get("kwargs") or {})) for kind, scores in metrics.items() for score in scores or ()]
    results: dict[str, float] = {}
    classes = sorted(set(clsnames.tolist()))
    for clsname in classes:
        chosen = np.flatnonzero(clsnames == clsname)
        results |= evaluate_class(clsname, maps[chosen], masks[chosen], labels[chosen], wanted)
    for kind, name, _ in wanted:
        values = [results[f"{clsname}_{name}_{kind}"] for clsname in classes]
        finite = [value for value in values if not np.isnan(value)]
        results[f"mean_{name}_{kind}"] = float(np.mean(finite)) if finite else float("nan")
    return results


def evaluate_class(
    clsname: str, maps: np.ndarray, masks: np.ndarray, labels: np.ndarray, wanted: list[tuple[str, str, Mapping[str, Any]]]
) -> dict[str, float]:
    """The numbers of one class; what needs the same sort shares it."""
    with_truth = (labels == 0) | masks.any(axis=(1, 2))
    sorted_once: dict[tuple, Counts | None] = {}
    results = {}
    for kind, name, kwargs in wanted:
        key = (name, tuple(kwargs.get("avgpool_size") or ()))
        if key not in sorted_once:
            if name == "pixel":
                scores, truth = maps[with_truth].ravel(), masks[with_truth].ravel()
            else:
                scores, truth = image_scores(maps, name, kwargs.get("avgpool_size")), labels
            both = 0 < np.count_nonzero(truth) < len(truth)
            sorted_once[key] = count_at_thresholds(scores, truth) if both else None
        counts = sorted_once[key]
        if counts is None:
            value = float("nan")
        elif kind == "aupro":
            value = aupro(counts, masks[with_truth])
        else:
            value = CURVE_METRICS[kind](counts)
        results[f"{clsname}_{name}_{kind}"] = value
    return results
