"""Detection metrics: exact, pure functions on arrays. Equal scores are one threshold throughout.

Every metric follows from one ranking of a class's pixels (or images), which they share. Positives are few, and a curve changes
course only at their scores: in between, nothing but false positives are added. So negatives are only sorted, and counts are
taken at the scores of the positives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from utils.errors import UserError

AUPRO_LIMIT = 0.3  # false-positive rate up to which the per-region overlap is integrated


@dataclass(frozen=True)
class Ranking:
    """Counts at K thresholds, the distinct scores of the positives, from the highest to the lowest."""

    true_positives: np.ndarray  # K, positives at or above the threshold
    false_positives: np.ndarray  # K, negatives at or above it
    false_positives_before: np.ndarray  # K, negatives above it; the difference is tied with positives
    overlap: np.ndarray  # K, share of a region at or above it, averaged over regions; the last is 1
    positives: int
    negatives: int


def rank(negatives: np.ndarray, positives: np.ndarray, areas: np.ndarray | None = None) -> Ranking:
    """Sort and count. negatives: N scores; positives: P scores; areas: P, the size of each positive's region (default 1)."""
    negatives = np.sort(negatives)
    # Complex numbers sort by score, then by area, so that sums of shares depend on no order of pixels or images.
    pairs = np.sort(positives + 1j * (np.ones(len(positives)) if areas is None else areas))[::-1]
    ends = np.flatnonzero(np.append(pairs.real[1:] != pairs.real[:-1], True))  # K, the last positive of each threshold
    thresholds = pairs.real[ends].astype(negatives.dtype)
    overlap = np.cumsum(1 / pairs.imag)[ends]
    return Ranking(
        true_positives=ends + 1,
        false_positives=len(negatives) - np.searchsorted(negatives, thresholds, side="left"),
        false_positives_before=len(negatives) - np.searchsorted(negatives, thresholds, side="right"),
        overlap=overlap / overlap[-1],
        positives=len(positives),
        negatives=len(negatives),
    )


def auroc(ranking: Ranking) -> float:
    """Area under the receiver operating characteristic, as it is: below 0.5 where scores rank the wrong way."""
    steps = np.diff(ranking.true_positives, prepend=0)
    twice_lost = np.sum(steps * (ranking.false_positives_before + ranking.false_positives))  # pairs; a tie loses half
    return 1 - int(twice_lost) / (2 * ranking.positives * ranking.negatives)


def average_precision(ranking: Ranking) -> float:
    """Precision at each threshold, weighted by the step in recall."""
    precision = ranking.true_positives / (ranking.true_positives + ranking.false_positives)
    return float(np.sum(np.diff(ranking.true_positives, prepend=0) * precision) / ranking.positives)


def f1_max(ranking: Ranking) -> float:
    """The largest F1 over all thresholds."""
    called = ranking.true_positives + ranking.false_positives
    return float(np.max(2 * ranking.true_positives / (called + ranking.positives)))


def aupro(ranking: Ranking) -> float:
    """Per-region overlap, averaged over regions, integrated to a false-positive rate of 0.3 and divided by it."""
    # A threshold adds two corners to the curve: flat as far as the false positives before it, then straight through its ties.
    false_positives = np.stack([ranking.false_positives_before, ranking.false_positives], axis=1).ravel()  # 2K
    fpr = np.concatenate([[0.0], false_positives / ranking.negatives, [1.0]])
    overlap = np.concatenate([[0.0, 0.0], np.repeat(ranking.overlap, 2)])
    inside = np.searchsorted(fpr, AUPRO_LIMIT, side="right")
    at_limit = np.interp(AUPRO_LIMIT, fpr, overlap)
    area = np.trapezoid(np.append(overlap[:inside], at_limit), np.append(fpr[:inside], AUPRO_LIMIT))
    return float(area / AUPRO_LIMIT)


METRICS = {"auc": auroc, "ap": average_precision, "f1max": f1_max, "aupro": aupro}
METRIC_KINDS = tuple(METRICS)


def image_scores(maps: np.ndarray, name: str, avgpool_size: Sequence[int] | None = None) -> np.ndarray:
    """One score an image, N. maps: NxHxW; name: mean, std (of the population), or max, over `avgpool_size` windows' means."""
    if name == "mean":
        return np.array([image.mean(dtype=np.float64) for image in maps])
    if name == "std":
        return np.array([image.std(dtype=np.float64) for image in maps])
    if avgpool_size is None:
        return maps.max(axis=(1, 2))
    height, width = avgpool_size
    rows, columns = maps.shape[1] - height + 1, maps.shape[2] - width + 1  # positions of the window
    if rows < 1 or columns < 1:
        raise UserError(f"avgpool_size {height}x{width} is larger than the maps ({maps.shape[1]}x{maps.shape[2]})")
    # Anchored at its first pixel, the window lies inside the image at the first rows and columns. Its sums run on in float64;
    # in the precision of the maps, windows of equal content have equal means again.
    means = (cv2.boxFilter(image.astype(np.float64), -1, (width, height), anchor=(0, 0)) for image in maps)
    return np.array([mean[:rows, :columns].max() for mean in means], dtype=np.result_type(maps.dtype, np.float32))


def region_areas(masks: np.ndarray) -> np.ndarray:
    """The size of the 8-connected region of each mask pixel, P, in the order of maps[masks]. masks: NxHxW bool, some true."""
    areas = []
    for mask in masks[masks.any(axis=(1, 2))]:
        _, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        numbers = numbers[mask]
        areas.append(np.bincount(numbers)[numbers])
    return np.concatenate(areas)


def evaluate_maps(
    maps: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    clsnames: Sequence[str],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """Every number of a configuration's `evaluator.metrics`, by class and as the mean over classes.

    Args:
        maps: NxHxW float32, anomaly maps. Other real types are taken as they are; float64 must hold the values of integers.
        masks: NxHxW of {0, 1}. A defective image whose mask is empty counts in image metrics and is left out of pixel metrics.
        labels: N of {0, 1}, the data set's.
        clsnames: N class names.
        metrics: by kind (auc, ap, f1max, aupro) a list of {"name": mean|std|max|pixel, "kwargs": {"avgpool_size"}}.

    Returns {"<class>_<name>_<kind>": value}, classes sorted, then "mean_<name>_<kind>". A class in which only one label occurs
    has nan and is left out of the mean. Classes are done one after another, with a copy of one class's maps in memory.
    Raises UserError naming the index of the first map that holds a value that is not finite.
    """
    labels, clsnames = np.asarray(labels), np.asarray(clsnames)
    for index, image in enumerate(maps):
        if not np.isfinite(image).all():
            raise UserError(f"anomaly map {index} (class {clsnames[index]}) holds values that are not finite: leave it out")
    wanted = [
        (kind, score["name"], (score.get("kwargs") or {}).get("avgpool_size"))
        for kind, scores in metrics.items()
        for score in scores or ()
    ]
    results: dict[str, float] = {}
    classes = sorted(set(clsnames.tolist()))
    for clsname in classes:
        chosen = np.flatnonzero(clsnames == clsname)
        values = evaluate_class(maps[chosen], masks[chosen], labels[chosen], wanted)
        results |= {f"{clsname}_{name}_{kind}": value for (kind, name, _), value in zip(wanted, values, strict=True)}
    for kind, name, _ in wanted:
        values = [results[f"{clsname}_{name}_{kind}"] for clsname in classes]
        finite = [value for value in values if not np.isnan(value)]
        results[f"mean_{name}_{kind}"] = float(np.mean(finite)) if finite else float("nan")
    return results


def evaluate_class(
    maps: np.ndarray, masks: np.ndarray, labels: np.ndarray, wanted: list[tuple[str, str, Sequence[int] | None]]
) -> list[float]:
    """The numbers of one class, by (kind, name, avgpool_size) as in `wanted`; what needs the same ranking shares it."""
    rankings: dict[tuple, Ranking | None] = {}
    values = []
    for kind, name, avgpool_size in wanted:
        key = (name, tuple(avgpool_size or ()))
        if key not in rankings:
            if name == "pixel":
                rankings[key] = rank_pixels(maps, masks, labels)
            else:
                rankings[key] = rank_images(image_scores(maps, name, avgpool_size), labels)
        ranking = rankings[key]
        values.append(float("nan") if ranking is None else METRICS[kind](ranking))
    return values


def rank_images(scores: np.ndarray, labels: np.ndarray) -> Ranking | None:
    """scores, labels: N. None where only one label occurs."""
    defective = labels != 0
    return rank(scores[~defective], scores[defective]) if defective.any() and not defective.all() else None


def rank_pixels(maps: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> Ranking | None:
    """maps, masks: NxHxW of one class; labels: N. None where the masks that count are all empty or all full."""
    masks = masks != 0
    counts = (labels == 0) | masks.any(axis=(1, 2))
    maps, masks = maps[counts], masks[counts]
    return rank(maps[~masks], maps[masks], region_areas(masks)) if masks.any() and not masks.all() else None
