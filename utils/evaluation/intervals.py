"""Bootstrap intervals of detection metrics: how far the numbers would move with other test images of the same kind.

The images of each class and label are drawn again with replacement, as many as there are. The interval of a metric is what lies
between the percentiles of its values over such draws. A network that is trained again moves the numbers too: see
tools/summarize.py.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.evaluate import INTERVALS, Evaluation
from utils.evaluation.metrics import PIXEL, ScoreKey, auroc, image_keys, rank_images, wanted_metrics
from utils.files import write_text

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
CELLS = 1_000_000  # numbers in a block of resamples
BITS, OCTAVES = 8, 12  # pixels: bins an octave (2^BITS of equal width) and octaves below the largest score; below is one bin

# From how often each image is drawn, c x n, the positives and negatives at or above K thresholds, c x K, the highest first.
Curves = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    """A metric of the images as they are, and the percentiles of its values over resamples."""

    value: float
    low: float
    high: float


def bootstrap(evaluation: Evaluation, metrics: dict[str, Any], results: Mapping[str, float]) -> dict[str, Interval | None]:
    """The intervals of `results`, which is what compute_metrics found, AUPRO left out; of several classes also the pooled ones.

    pooled_<name>_auc is the AUROC of all images of all classes ranked together by an image score, as one threshold for all
    does. None: the metric has no number. Pixel metrics are resampled by image too, their scores rounded to 2^-9 of themselves.
    """
    wanted = [(kind, key) for kind, key in wanted_metrics(metrics) if kind in RESAMPLED]
    if not wanted:
        return {}
    names = [f"{name}_{kind}" for kind, (name, _) in wanted]
    scores, labels, clsnames = evaluation.scores(image_keys(wanted)), evaluation.labels, evaluation.clsnames
    rng = np.random.default_rng(SEED)
    intervals, draws = {}, {name: [] for name in names}
    for clsname in sorted(set(clsnames.tolist())):
        chosen = np.flatnonzero(clsnames == clsname)
        curves = {key: image_curves(values[chosen], labels[chosen]) for key, values in scores.items()}
        if any(key == PIXEL for _, key in wanted):
            curves[PIXEL] = pixel_curves(evaluation, chosen)
        for name, values in zip(names, resample(curves, labels[chosen], wanted, rng), strict=True):
            found = interval(results[f"{clsname}_{name}"], values)
            intervals[f"{clsname}_{name}"] = found
            draws[name] += [values] if found else []
    for name, of_classes in draws.items():
        intervals[f"mean_{name}"] = interval(results[f"mean_{name}"], np.mean(of_classes, axis=0) if of_classes else None)
    return intervals | pooled_intervals(scores, labels, clsnames, rng)


def pooled_intervals(
    scores: Mapping[ScoreKey, np.ndarray], labels: np.ndarray, clsnames: np.ndarray, rng: np.random.Generator
) -> dict[str, Interval | None]:
    """Those of pooled_<name>_auc; nothing for one class. scores: N each; labels, clsnames: N."""
    classes, numbers = np.unique(clsnames.astype(str), return_inverse=True)
    if len(classes) == 1 or not scores:
        return {}
    curves = {key: image_curves(values, labels) for key, values in scores.items()}
    draws = resample(curves, 2 * numbers + (labels != 0), [("auc", key) for key in scores], rng)
    intervals = {}
    for (key, values), of_key in zip(scores.items(), draws, strict=True):
        ranking = rank_images(values, labels)
        intervals[f"pooled_{key[0]}_auc"] = interval(auroc(ranking) if ranking else math.nan, of_key)
    return intervals


def interval(value: float, draws: np.ndarray | None) -> Interval | None:
    """draws: the metric's values over resamples; nan, where a resample has none, is left out. None where `value` is nan."""
    if math.isnan(value):
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def resample(
    curves: Mapping[ScoreKey, Curves], strata: np.ndarray, wanted: Sequence[tuple[str, ScoreKey]], rng: np.random.Generator
) -> np.ndarray:
    """The values of the metrics `wanted` over resamples, len(wanted) x RESAMPLES. strata: n, images drawn among each other."""
    blocks = []
    for weights in draw(strata, rng):
        found = {key: of_key(weights) for key, of_key in curves.items()}
        with np.errstate(divide="ignore", invalid="ignore"):  # nan where only one label occurs
            blocks.append([RESAMPLED[kind](*found[key]) for kind, key in wanted])
    return np.concatenate(blocks, axis=1)


def draw(strata: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each image is drawn, in blocks of c x n: RESAMPLES rows in all. strata: n."""
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    rows = max(1, CELLS // max(len(strata), OCTAVES << BITS))
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        weights = np.empty((count, len(strata)), np.float32)
        for group in groups:
            size = len(group)
            cells = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
            weights[:, group] = np.bincount(cells.ravel(), minlength=count * size).reshape(count, size)
        yield weights


def image_curves(scores: np.ndarray, labels: np.ndarray) -> Curves:
    """Thresholds are the distinct scores. scores, labels: n."""
    order = np.argsort(-scores, kind="stable")
    falling, defective = scores[order], labels[order] != 0
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # K, the last image of each threshold

    def curves(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn = weights[:, order].astype(np.float64)
        positives = np.cumsum(drawn * defective, axis=1)[:, ends]
        return positives, np.cumsum(drawn, axis=1)[:, ends] - positives

    return curves


def pixel_curves(evaluation: Evaluation, chosen: np.ndarray) -> Curves:
    """Thresholds are the limits of bins, for which a histogram of an image says everything. chosen: n positions of a class."""
    grids = evaluation.grids[chosen]
    high = int(to_bin(grids.max()))
    low = max(int(to_bin(grids.min())), high - (OCTAVES << BITS) + 1)
    size = high - low + 1
    counts = np.zeros((len(chosen), 2, size), np.float32)  # pixels outside and inside the mask
    for row, position in enumerate(chosen):
        mask = evaluation.mask(position)
        if evaluation.labels[position] and not mask.any():
            continue
        bins = high - to_bin(evaluation.map(position)).clip(low, high)  # HxW, 0 for the highest scores
        counts[row] = np.bincount((bins + size * mask.astype(np.int32)).ravel(), minlength=2 * size).reshape(2, size)

    def curves(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn = (weights @ counts.reshape(len(chosen), -1)).reshape(-1, 2, size)
        negatives, positives = np.cumsum(drawn, axis=2, dtype=np.float64).transpose(1, 0, 2)
        return positives, negatives

    return curves


def to_bin(scores: np.ndarray) -> np.ndarray:
    """The number of the bin: exponent and leading bits of a float32, which rise with it. Distances are never negative."""
    return np.abs(scores).view(np.int32) >> (23 - BITS)


# The metrics of .metrics for many resamples at once. positives, negatives: c x K counts, as of Curves; the result: c.


def resampled_auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    before = np.pad(negatives[:, :-1], ((0, 0), (1, 0)))
    twice_lost = np.sum(np.diff(positives, axis=1, prepend=0) * (before + negatives), axis=1)
    return 1 - twice_lost / (2 * positives[:, -1] * negatives[:, -1])


def resampled_average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    precision = positives / np.maximum(positives + negatives, 1)
    return np.sum(np.diff(positives, axis=1, prepend=0) * precision, axis=1) / positives[:, -1]


def resampled_f1_max(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    return np.max(2 * positives / (positives + negatives + positives[:, -1:]), axis=1)


RESAMPLED = {"auc": resampled_auroc, "ap": resampled_average_precision, "f1max": resampled_f1_max}


def write_intervals(folder: str | Path, intervals: Mapping[str, Interval | None]) -> None:
    """Write intervals.json into the result folder: by key value, low and high, or null."""
    content = {key: asdict(found) if found else None for key, found in intervals.items()}
    write_text(Path(folder) / INTERVALS, json.dumps(content, indent=1) + "\n")


def format_intervals(intervals: Mapping[str, Interval | None]) -> str:
    """A line of the means and one of the pooled numbers, each with its interval; none of either: "" for it."""
    titles = {"mean": "mean of the classes", "pooled": "all classes, one threshold"}
    lines = []
    for row, title in titles.items():
        there = {key.removeprefix(f"{row}_").removesuffix("_auc"): i for key, i in intervals.items() if key.startswith(f"{row}_")}
        cells = [f"{name} {i.value:.4f} ({i.low:.3f}–{i.high:.3f})" for name, i in there.items() if i]
        if cells:
            lines.append(f"{title}, 95 % interval: {', '.join(cells)}")
    return "\n".join(lines)
