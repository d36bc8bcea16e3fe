"""Bootstrap intervals of image metrics: how far the numbers would move with other test images of the same kind.

The images of each class and label are drawn with replacement, as many as there are. The interval of a metric lies between the
percentiles of its values over such resamples. It does not cover another training run: for that see tools/summarize.py.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from utils.evaluation.evaluate import Evaluation
from utils.evaluation.metrics import METRICS, PIXEL, Ranking, image_keys, rank_images, wanted_metrics
from utils.evaluation.results import Column, Interval, Intervals, Results, align_table, header

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
ROWS, CELLS = 325, 1_000_000  # of a block of resamples at most; the random numbers depend on the blocks


def bootstrap(evaluation: Evaluation, metrics: dict[str, Any], results: Results) -> Intervals:
    """The intervals of the image metrics in `results`; for several classes also of the pooled AUROCs.

    A pooled AUROC ranks the images of all classes together by an image score, as one threshold for all classes does.
    """
    wanted = {column: key for column, key in wanted_metrics(metrics).items() if key != PIXEL}
    by_key = evaluation.scores(image_keys(wanted))
    scores = {column: by_key[key] for column, key in wanted.items()}
    labels, clsnames, rng = evaluation.labels, evaluation.clsnames, np.random.default_rng(SEED)
    intervals, draws = {}, {column: [] for column in wanted}
    for clsname, values in results.classes.items():
        chosen = clsnames == clsname
        resampled = resample({column: of[chosen] for column, of in scores.items()}, labels[chosen], labels[chosen], rng)
        for column, value in zip(results.columns, values, strict=True):
            if column in wanted:
                intervals[clsname, column] = interval(value, resampled[column])
                draws[column] += [] if math.isnan(value) else [resampled[column]]
    for column, value in zip(results.columns, results.mean, strict=True):
        if column in wanted:
            intervals["mean", column] = interval(value, np.mean(draws[column], axis=0) if draws[column] else None)
    if len(results.classes) > 1:
        pooled = {Column(column.score, "auc"): of for column, of in scores.items()}
        strata = 2 * np.unique(clsnames.astype(str), return_inverse=True)[1] + (labels != 0)
        for column, resampled in resample(pooled, labels, strata, rng).items():
            ranking = rank_images(pooled[column], labels)
            intervals["pooled", column] = interval(float(METRICS["auc"](ranking)) if ranking else math.nan, resampled)
    return intervals


def interval(value: float, draws: np.ndarray | None) -> Interval | None:
    """draws: the metric's values over resamples. None if `value` is nan."""
    if math.isnan(value):
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def resample(
    scores: Mapping[Column, np.ndarray], labels: np.ndarray, strata: np.ndarray, rng: np.random.Generator
) -> dict[Column, np.ndarray]:
    """RESAMPLES values of each column's metric. scores, labels, strata: n; images are drawn within their stratum."""
    blocks = []
    for counts in draw(strata, rng):
        with np.errstate(divide="ignore", invalid="ignore"):  # nan if only one label occurs
            blocks.append([METRICS[column.kind](rank_resamples(of, labels, counts)) for column, of in scores.items()])
    return dict(zip(scores, np.concatenate(blocks, axis=1), strict=True)) if scores else {}


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
    positives = np.count_nonzero(defective)  # in each resample too: the strata keep the labels
    return Ranking(
        true_positives=true_positives,
        false_positives=false_positives,
        false_positives_before=np.pad(false_positives[:, :-1], ((0, 0), (1, 0))),
        overlap=true_positives / positives,
        positives=positives,
        negatives=len(defective) - positives,
    )


def format_intervals(intervals: Intervals) -> str:
    """A table of the means and the pooled numbers, each with its interval; "" if there are none."""
    titles = {"mean": "mean of the classes", "pooled": "all classes, one threshold"}
    columns = list(dict.fromkeys(column for row, column in intervals if row in titles))
    rows = []
    for row, title in titles.items():
        found = [intervals.get((row, column)) for column in columns]
        if any(found):
            rows.append([title, *(f"{i.value:.4f} ({i.low:.3f}–{i.high:.3f})" if i else "–" for i in found)])
    return f"95 % intervals\n{align_table(['', *header(columns)[1:]], rows)}" if rows else ""
