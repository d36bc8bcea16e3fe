"""Detection metrics: exact, pure functions on arrays. Equal scores are one threshold throughout.

Every metric follows from one ranking of a class's pixels (or images), which they share. Positives are few, and a curve changes
course only at their scores: in between, nothing but false positives are added. So negatives are only sorted, and counts are
taken at the scores of the positives.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from utils.errors import UserError
from utils.evaluation.results import Results

AUPRO_LIMIT = 0.3  # false-positive rate up to which the per-region overlap is integrated
AREA_BITS = (1 << 29) - 1  # of a float64, those that the value of a float32 leaves zero

TOP_SHARE = 0.01  # of the pixels, the highest, whose mean is the score top

# What is ranked: an image score, given by its name and avgpool_size or share, or the pixels themselves.
ScoreKey = tuple[str, tuple[int, int] | float | None]
PIXEL: ScoreKey = ("pixel", None)


@dataclass(frozen=True)
class Ranking:
    """Counts at K thresholds from high to low, among them each distinct score of a positive; C x K for C resamples."""

    true_positives: np.ndarray  # K, positives at or above the threshold
    false_positives: np.ndarray  # K, negatives at or above it
    false_positives_before: np.ndarray  # K, negatives above it; the difference is tied with positives
    overlap: np.ndarray  # K, share of a region at or above it, averaged over regions; the last is 1
    positives: int
    negatives: int


def rank(negatives: np.ndarray, positives: np.ndarray, areas: np.ndarray) -> Ranking:
    """Sort and count. negatives: N scores, sorted in place; positives: P scores; areas: P, the size of each one's region."""
    negatives.sort()
    scores, areas = sort_pairs(positives, areas)
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # K, the last positive of each threshold
    thresholds = scores[ends].astype(negatives.dtype)
    overlap = np.cumsum(1 / areas)[ends]
    return Ranking(
        true_positives=ends + 1,
        false_positives=len(negatives) - np.searchsorted(negatives, thresholds, side="left"),
        false_positives_before=len(negatives) - np.searchsorted(negatives, thresholds, side="right"),
        overlap=overlap / overlap[-1],
        positives=len(positives),
        negatives=len(negatives),
    )


def sort_pairs(scores: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both from the highest score to the lowest, and equal scores by area: sums of shares depend on no order of pixels."""
    if np.result_type(scores, np.float32) != np.float32:
        order = np.lexsort((areas, scores))[::-1]
        return scores[order], areas[order]
    # With the area in the bits that a float32 leaves, one sort of plain numbers does for both; + 0.0 makes -0.0 zero.
    packed = (scores.astype(np.float64) + 0.0).view(np.int64) | areas
    packed.view(np.float64).sort()
    packed = packed[::-1]
    areas = packed & AREA_BITS
    return (packed - areas).view(np.float64), areas


# auroc, average_precision and f1_max reduce the last axis: one number of a ranking, C numbers of C resamples.


def auroc(ranking: Ranking) -> np.ndarray:
    """Area under the receiver operating characteristic, as it is: below 0.5 where scores rank the wrong way."""
    steps = np.diff(ranking.true_positives, prepend=0)
    twice_lost = np.sum(steps * (ranking.false_positives_before + ranking.false_positives), axis=-1)  # pairs; a tie loses half
    return 1 - twice_lost / (2 * ranking.positives * ranking.negatives)


def average_precision(ranking: Ranking) -> np.ndarray:
    """Precision at each threshold, weighted by the step in recall."""
    called = ranking.true_positives + ranking.false_positives
    precision = ranking.true_positives / np.maximum(called, 1)  # a resample may lack the highest scores
    return np.sum(np.diff(ranking.true_positives, prepend=0) * precision, axis=-1) / ranking.positives


def f1_max(ranking: Ranking) -> np.ndarray:
    """The largest F1 over all thresholds."""
    called = ranking.true_positives + ranking.false_positives
    return np.max(2 * ranking.true_positives / (called + ranking.positives), axis=-1)


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


def top_count(pixels: int, share: float) -> int:
    """How many pixels the score `top` is the mean of: at least one."""
    return max(1, math.floor(pixels * share))


def image_score(
    anomaly_map: np.ndarray, name: str, option: Sequence[int] | float | None = None, inside: np.ndarray | None = None
) -> np.floating:
    """The score of an image, HxW.

    name: mean, std (of the population), top, the mean of the highest pixels, whose share is `option`, or max, over the means of
    windows whose size is `option`, but no larger than the map. inside: HxW bool, the pixels that count; None: all. The map is 0
    elsewhere, also in windows.
    """
    if inside is not None and name != "max":
        anomaly_map = anomaly_map[inside]
    if name == "top":
        count = top_count(anomaly_map.size, option or TOP_SHARE)
        return np.partition(anomaly_map, -count, axis=None)[-count:].mean(dtype=np.float64)
    if name == "mean":
        return anomaly_map.mean(dtype=np.float64)
    if name == "std":
        return anomaly_map.std(dtype=np.float64)
    if option is None:
        return anomaly_map.max()
    height, width = map(min, option, anomaly_map.shape)  # a small photograph in tiles has a small map
    rows, columns = (side - part + 1 for side, part in zip(anomaly_map.shape, (height, width), strict=True))  # its positions
    # Anchored at its first pixel, the window lies inside the image at the first rows and columns. Its sums run on in float64;
    # in the precision of the maps, windows of equal content have equal means again.
    means = cv2.boxFilter(anomaly_map.astype(np.float64), -1, (width, height), anchor=(0, 0))
    return means[:rows, :columns].max().astype(np.result_type(anomaly_map.dtype, np.float32))


def image_scores(
    maps: np.ndarray,
    name: str,
    option: Sequence[int] | float | None = None,
    insides: Sequence[np.ndarray | None] | None = None,
) -> np.ndarray:
    """One score an image, N, of maps NxHxW; see image_score."""
    insides = insides or [None] * len(maps)
    return np.array([image_score(one, name, option, inside) for one, inside in zip(maps, insides, strict=True)])


def region_areas(mask: np.ndarray) -> np.ndarray:
    """The size of the 8-connected region of each mask pixel, P, in the order of anomaly_map[mask]. mask: HxW bool."""
    _, numbers = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    numbers = numbers[mask]
    return np.bincount(numbers)[numbers]


def evaluate_maps(
    maps: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    clsnames: Sequence[str],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """Every number of a configuration's `evaluator.metrics`, by class and as the mean over classes.

    Args:
        maps: NxHxW float32, anomaly maps. Other real types are taken as they are.
        masks: NxHxW of {0, 1}. A defective image whose mask is empty counts in image metrics and is left out of pixel metrics.
        labels: N of {0, 1}, the data set's.
        clsnames: N class names.
        metrics: by kind (auc, ap, f1max, aupro) a list of {"name": mean|std|max|top|pixel, "kwargs": {...}}, see image_score.

    Returns {"<class>_<name>_<kind>": value}, classes sorted, then "mean_<name>_<kind>". A class in which only one label occurs
    has nan and is left out of the mean. Classes are done one after another, with a copy of one class's pixels in memory.
    Raises UserError naming the index of the first map that holds a value that is not finite.
    """
    labels, clsnames = np.asarray(labels), np.asarray(clsnames)
    for index, image in enumerate(maps):
        if not np.isfinite(image).all():
            raise UserError(f"anomaly map {index} (class {clsnames[index]}) holds values that are not finite: leave it out")
    wanted = wanted_metrics(metrics)
    scores = {key: image_scores(maps, *key) for key in image_keys(wanted)}
    values = {}
    for clsname in set(clsnames.tolist()):
        chosen = np.flatnonzero(clsnames == clsname)
        pixels = sum(maps[index].size for index in chosen)
        values[clsname] = evaluate_class(chosen, lambda index: (maps[index], masks[index], None), labels, scores, wanted, pixels)
    return Results.of([(name, kind) for kind, (name, _) in wanted], values).numbers()


def wanted_metrics(metrics: Mapping[str, Sequence[Mapping[str, Any]] | None]) -> list[tuple[str, ScoreKey]]:
    """A configuration's metrics in its order: the kind, and the score that it is of."""
    wanted = []
    for kind, scores in metrics.items():
        for score in scores or ():
            kwargs = score.get("kwargs") or {}
            option = {"max": kwargs.get("avgpool_size"), "top": kwargs.get("share")}.get(score["name"])
            wanted.append((kind, (score["name"], tuple(option) if isinstance(option, list | tuple) else option)))
    return wanted


def image_keys(wanted: Sequence[tuple[str, ScoreKey]]) -> list[ScoreKey]:
    """The image scores that metrics are of, each once."""
    return list(dict.fromkeys(key for _, key in wanted if key != PIXEL))


def evaluate_class(
    chosen: np.ndarray,
    read: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    labels: np.ndarray,
    scores: Mapping[ScoreKey, np.ndarray],
    wanted: Sequence[tuple[str, ScoreKey]],
    pixels: int,
) -> list[float]:
    """The numbers of one class, as in `wanted`; what needs the same ranking shares it.

    chosen: positions of the class's images; read: see rank_pixels, of the image at a position; labels: N; scores: N of each
    image score in `wanted`; pixels: of the class's maps together.
    """
    rankings = {key: rank_images(values[chosen], labels[chosen]) for key, values in scores.items()}
    if any(key == PIXEL for _, key in wanted):
        rankings[PIXEL] = rank_pixels(map(read, chosen), labels[chosen], pixels)
    return [float("nan") if rankings[key] is None else float(METRICS[kind](rankings[key])) for kind, key in wanted]


def rank_images(scores: np.ndarray, labels: np.ndarray) -> Ranking | None:
    """scores, labels: n. None where only one label occurs."""
    defective = labels != 0
    if defective.all() or not defective.any():
        return None
    return rank(scores[~defective], scores[defective], np.ones(np.count_nonzero(defective), np.int64))


def rank_pixels(
    images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]], labels: np.ndarray, pixels: int
) -> Ranking | None:
    """images: n maps, masks and regions of interest (None: all), HxW, of one class; labels: n; pixels: of all maps together.

    None where the masks that count are all empty or all full.
    """
    negatives, count, positives, areas = np.empty(0), 0, [], []
    for (anomaly_map, mask, inside), label in zip(images, labels, strict=True):
        if not len(negatives):  # room for all pixels, once their type is known; what stays unused takes no memory
            negatives = np.empty(pixels, anomaly_map.dtype)
        mask = mask != 0
        if mask.any():
            positives.append(anomaly_map[mask])
            areas.append(region_areas(mask))
        elif label != 0:
            continue
        normal = anomaly_map[~mask if inside is None else ~mask & inside]
        negatives[count : count + len(normal)] = normal
        count += len(normal)
    return rank(negatives[:count], np.concatenate(positives), np.concatenate(areas)) if positives and count else None
