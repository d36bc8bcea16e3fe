"""Bootstrap intervals of image metrics: how far the numbers would move with other test images of the same kind.

The images of each class and label are drawn with replacement, as many as there are. The interval of a metric lies between the
percentiles of its values over such resamples. Training the network again moves the numbers too: see tools/summarize.py.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.evaluate import INTERVALS, Evaluation
from utils.evaluation.metrics import METRICS, PIXEL, Ranking, ScoreKey, auroc, image_keys, rank_images, wanted_metrics
from utils.evaluation.results import Results
from utils.files import write_text

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
ROWS, CELLS = 325, 1_000_000  # of a block of resamples at most; the random numbers depend on the blocks


@dataclass(frozen=True)
class Interval:
    """A metric of the images as they are, and the percentiles of its values over resamples."""

    value: float
    low: float
    high: float


def bootstrap(evaluation: Evaluation, metrics: dict[str, Any], results: Results) -> dict[str, Interval | None]:
    """The intervals of the image metrics among `results`, those of compute_metrics; of several classes also the pooled ones.

    pooled_<name>_auc is the AUROC of the images of all classes under one threshold. None: the metric has no number.
    """
    wanted = [(kind, key) for kind, key in wanted_metrics(metrics) if key != PIXEL]
    if not wanted:
        return {}
    names = [f"{name}_{kind}" for kind, (name, _) in wanted]
    scores, labels, clsnames = evaluation.scores(image_keys(wanted)), evaluation.labels, evaluation.clsnames
    rng, numbers = np.random.default_rng(SEED), results.numbers()
    intervals, of_classes = {}, {name: [] for name in names}
    for clsname in sorted(set(clsnames.tolist())):
        chosen = np.flatnonzero(clsnames == clsname)
        of_class = {key: values[chosen] for key, values in scores.items()}
        for name, values in zip(names, resample(of_class, labels[chosen], labels[chosen], wanted, rng), strict=True):
            intervals[f"{clsname}_{name}"] = found = interval(numbers[f"{clsname}_{name}"], values)
            of_classes[name] += [values] if found else []
    for name, values in of_classes.items():
        intervals[f"mean_{name}"] = interval(numbers[f"mean_{name}"], np.mean(values, axis=0) if values else None)
    return intervals | pooled_intervals(scores, labels, clsnames, rng)


def pooled_intervals(
    scores: Mapping[ScoreKey, np.ndarray], labels: np.ndarray, clsnames: np.ndarray, rng: np.random.Generator
) -> dict[str, Interval | None]:
    """Those of pooled_<name>_auc; none for one class. scores: N each; labels, clsnames: N."""
    classes, numbers = np.unique(clsnames.astype(str), return_inverse=True)
    if len(classes) == 1:
        return {}
    wanted = [("auc", key) for key in scores]
    values = resample(scores, labels, 2 * numbers + (labels != 0), wanted, rng)
    rankings = [rank_images(of_key, labels) for of_key in scores.values()]
    whole = [math.nan if ranking is None else float(auroc(ranking)) for ranking in rankings]
    return {f"pooled_{key[0]}_auc": interval(*found) for (_, key), *found in zip(wanted, whole, values, strict=True)}


def resample(
    scores: Mapping[ScoreKey, np.ndarray],
    labels: np.ndarray,
    strata: np.ndarray,
    wanted: Sequence[tuple[str, ScoreKey]],
    rng: np.random.Generator,
) -> np.ndarray:
    """The metrics `wanted` of each resample, len(wanted) x RESAMPLES. scores: n each; labels, strata: n."""
    blocks = []
    for counts in draw(strata, rng):
        rankings = {key: rank_resamples(of_key, labels, counts) for key, of_key in scores.items()}
        with np.errstate(divide="ignore", invalid="ignore"):  # nan if only one label occurs
            blocks.append([METRICS[kind](rankings[key]) for kind, key in wanted])
    return np.concatenate(blocks, axis=1)


def draw(strata: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each image is drawn, in blocks of C x n: RESAMPLES rows in all. strata: n."""
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    rows = max(1, min(ROWS, CELLS // len(strata)))
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        counts = np.empty((count, len(strata)), np.int32)
        for group in groups:
            size = len(group)
            cells = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
            counts[:, group] = np.bincount(cells.ravel(), minlength=count * size).reshape(count, size)
        yield counts


def rank_resamples(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> Ranking:
    """The rankings of C resamples at all distinct scores. scores, labels: n; counts: C x n, how often each image is drawn."""
    order = np.argsort(-scores, kind="stable")
    falling, defective, drawn = scores[order], labels[order] != 0, counts[:, order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last image of each threshold
    true_positives = np.cumsum(drawn * defective, axis=1)[:, ends]
    false_positives = np.cumsum(drawn * ~defective, axis=1)[:, ends]
    positives = int(np.count_nonzero(defective))  # in each resample too: strata do not mix labels
    return Ranking(
        true_positives=true_positives,
        false_positives=false_positives,
        false_positives_before=np.pad(false_positives[:, :-1], ((0, 0), (1, 0))),
        overlap=true_positives / max(positives, 1),
        positives=positives,
        negatives=len(defective) - positives,
    )


def interval(value: float, resampled: np.ndarray | None) -> Interval | None:
    """resampled: the metric's values over resamples. None where `value` is nan."""
    if math.isnan(value):
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def write_intervals(folder: str | Path, intervals: Mapping[str, Interval | None]) -> None:
    """Write intervals.json into the result folder: by key value, low and high, or null."""
    content = {key: asdict(found) if found else None for key, found in intervals.items()}
    write_text(Path(folder) / INTERVALS, json.dumps(content, indent=1) + "\n")


def format_intervals(intervals: Mapping[str, Interval | None]) -> str:
    """A line of the means and one of the pooled numbers, each with its interval."""
    titles = {"mean": "mean of the classes", "pooled": "all classes, one threshold"}
    lines = []
    for row, title in titles.items():
        found = {key.removeprefix(f"{row}_").removesuffix("_auc"): i for key, i in intervals.items() if key.startswith(f"{row}_")}
        if cells := [f"{name} {i.value:.4f} ({i.low:.3f}–{i.high:.3f})" for name, i in found.items() if i]:
            lines.append(f"{title}, 95 % interval: {', '.join(cells)}")
    return "\n".join(lines)
