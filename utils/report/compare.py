"""Two or more result folders of the same test images on one page: what differs, by how much, and on which images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.evaluation.intervals import SEED, Interval, draw, interval, rank_resamples
from utils.evaluation.metrics import auroc
from utils.evaluation.naming import output_names
from utils.evaluation.results import KINDS, Column
from utils.files import write_text
from utils.report.page import data_uri, format_metric, headline, render_template
from utils.report.result_folder import Result, Scores, read_result

IMAGES = 12  # on which the runs disagree most


@dataclass
class Run:
    """A result folder, with the image score that it is about."""

    result: Result
    name: str
    score: str

    @property
    def scores(self) -> Scores:
        return self.result.scores

    @property
    def values(self) -> np.ndarray:
        """N, the score of each image."""
        return self.scores.scores[self.score]


@dataclass
class Disagreement:
    """An image that one run finds more anomalous, among the images of its class, than another does."""

    filename: str
    clsname: str
    label: str
    places: list[str]  # of each run: "3 of 40" by score, from the most anomalous
    pictures: list[Path | None]


def write_comparison(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page `out`; the first folder is what the others are compared with. Returns its path.

    Raises UserError for folders without image scores or of other test images, and naming a file that cannot be read or written.
    """
    runs = read_runs(folders)
    columns = [column for column in runs[0].result.metrics.columns if all(column in run.result.metrics.columns for run in runs)]
    page = render_template(
        "compare.html.j2",
        {"metric": format_metric, "difference": format_difference, "uri": data_uri},
        runs=runs,
        classes=sorted(set(runs[0].scores.clsnames.tolist())),
        tables=[(f"{KINDS[kind]} {name}", table(runs, (name, kind))) for name, kind in columns],
        differences=[auroc_differences(runs[0], run) for run in runs[1:]],
        images=disagreements(runs),
    )
    write_text(out, page)
    return Path(out)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    if len(folders) < 2:
        raise UserError("a comparison needs two result folders or more")
    runs = []
    for folder in folders:
        result = read_result(folder)
        score = headline(result)
        if result.scores is None or score is None:
            raise UserError(f"{folder}: has no image scores in scores.csv; evaluate again with -e")
        run = Run(result, str(folder), score)
        first = (runs or [run])[0].scores
        if run.scores.filenames != first.filenames or not np.array_equal(run.scores.labels, first.labels):
            raise UserError(f"{folder}: is of other test images than {folders[0]}; compare results of the same list")
        runs.append(run)
    return runs


def table(runs: Sequence[Run], column: Column) -> list[tuple[str, list[float]]]:
    """A row a class, then their mean: the metric of each run."""
    metrics = [(run.result.metrics, run.result.metrics.columns.index(column)) for run in runs]
    rows = [
        (clsname, [found.rows.get(clsname, {place: math.nan})[place] for found, place in metrics])
        for clsname in metrics[0][0].rows
    ]
    return [*rows, ("mean", [found.mean[place] for found, place in metrics])]


def auroc_differences(first: Run, other: Run) -> dict[str, Interval | None]:
    """How much higher the image AUROC of `other` is, by class and for their mean, with paired bootstrap intervals.

    Both runs are resampled together: an image that is drawn counts in both. None where a class has images of one label only.
    """
    rng, found, whole, drawn = np.random.default_rng(SEED), {}, [], []
    for clsname in sorted(set(first.scores.clsnames.tolist())):
        chosen = np.flatnonzero(first.scores.clsnames == clsname)
        labels = first.scores.labels[chosen]
        if len(set(labels.tolist())) == 1:
            found[clsname] = None
            continue
        once = np.ones((1, len(chosen)), np.int32)
        (value,) = difference(first.values[chosen], other.values[chosen], labels, once)
        values = [difference(first.values[chosen], other.values[chosen], labels, counts) for counts in draw(labels, rng)]
        whole.append(float(value))
        drawn.append(np.concatenate(values))
        found[clsname] = interval(whole[-1], drawn[-1])
    found["mean"] = interval(float(np.mean(whole)), np.mean(drawn, axis=0)) if whole else None
    return found


def difference(first: np.ndarray, other: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the AUROC in each of C resamples. first, other, labels: n; counts: C x n, how often each image is drawn."""
    return auroc(rank_resamples(other, labels, counts)) - auroc(rank_resamples(first, labels, counts))


def disagreements(runs: Sequence[Run]) -> list[Disagreement]:
    """The images whose place by score differs most between two runs, as a share of their class."""
    scores = runs[0].scores
    places, sizes = np.zeros((len(runs), len(scores.labels)), int), np.zeros(len(scores.labels), int)
    for clsname in set(scores.clsnames.tolist()):
        chosen = np.flatnonzero(scores.clsnames == clsname)
        sizes[chosen] = len(chosen)
        for place, run in enumerate(runs):
            places[place, chosen[np.argsort(-run.values[chosen], kind="stable")]] = np.arange(1, len(chosen) + 1)
    spread = np.ptp(places, axis=0) / sizes
    names = output_names(scores.filenames)
    found = []
    for image in np.argsort(-spread, kind="stable")[:IMAGES]:
        if spread[image] == 0:
            break
        pictures = [run.result.folder / "vis_compound" / f"{names[image]}.jpg" for run in runs]
        found.append(
            Disagreement(
                scores.filenames[image],
                scores.clsnames[image],
                "defective" if scores.labels[image] else "good",
                [f"{place} of {sizes[image]}" for place in places[:, image]],
                [picture if picture.is_file() else None for picture in pictures],
            )
        )
    return found


def format_difference(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:+.4f} ({found.low:+.3f} to {found.high:+.3f})"
