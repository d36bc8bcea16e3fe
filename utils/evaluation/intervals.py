"""Bootstrap intervals of image metrics: how far the numbers would move with other test images of the same kind.

The images of each class and label are drawn with replacement, as many as there are. The interval of a metric lies between the
percentiles of its values over such resamples. Training the network again moves the numbers too: see tools/summarize.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.evaluate import INTERVALS, Evaluation
from utils.evaluation.metrics import METRICS, PIXEL, Ranking, ScoreKey, image_keys, rank_images, wanted_metrics
from utils.evaluation.results import Results
from utils.files import write_text

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0


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
    whole = [metric_of(rank_images(of_key, labels), "auc") for of_key in scores.values()]
    return {f"pooled_{key[0]}_auc": interval(*found) for (_, key), *found in zip(wanted, whole, values, strict=True)}


def resample(
    scores: Mapping[ScoreKey, np.ndarray],
    labels: np.ndarray,
    strata: np.ndarray,
    wanted: Sequence[tuple[str, ScoreKey]],
    rng: np.random.Generator,
) -> np.ndarray:
    """The metrics `wanted` of each resample, len(wanted) x RESAMPLES. scores: n each; labels, strata: n."""
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    values = np.empty((len(wanted), RESAMPLES))
    for column in range(RESAMPLES):
        drawn = np.concatenate([group[rng.integers(len(group), size=len(group))] for group in groups])
        rankings = {key: rank_images(of_key[drawn], labels[drawn]) for key, of_key in scores.items()}
        values[:, column] = [metric_of(rankings[key], kind) for kind, key in wanted]
    return values


def metric_of(ranking: Ranking | None, kind: str) -> float:
    """The metric of a ranking; nan where only one label occurs."""
    return math.nan if ranking is None else METRICS[kind](ranking)


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
