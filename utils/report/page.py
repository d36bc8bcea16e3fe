"""The report of an evaluation: a result folder as one HTML file that needs no other file."""

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.errors import UserError
from utils.evaluation.calibration import rates_at
from utils.evaluation.evaluate import GALLERY
from utils.evaluation.metrics import Ranking, auroc, rank_images
from utils.evaluation.region_rates import HEADER, RegionRates
from utils.evaluation.results import AGAIN, KINDS
from utils.files import lock, write_text
from utils.report import plots
from utils.report.decisions import Sentence, sentences
from utils.report.result_folder import Result, Scores, read_result

HERE = Path(__file__).parent
ROWS, HISTOGRAMS, CURVES = 1000, 60, 48  # the most classes in table, histograms and ROC curves; those with low AUROC are kept
format_score = "{:#.4g}".format
format_interval = "{0[1]:.3f}–{0[2]:.3f}".format  # of value, low, high
PICKS = {
    "most": ("Most anomalous", None),
    "least": ("Least anomalous", None),
    "good_highest": ("Good images with the highest scores", "good"),
    "defective_lowest": ("Defective images with the lowest scores", "defective"),
}


def write_report(result_dir: str | Path, out: str | Path | None = None) -> Path:
    """Render the result folder's files as <result_dir>/report.html, or as `out`; returns the page's path.

    A section whose file is missing says so. Raises UserError naming the file that cannot be read or written.
    """
    with nullcontext() if out or not Path(result_dir).is_dir() else lock(result_dir):  # nobody writes what is read
        result = read_result(result_dir)
        out = Path(out) if out else result.folder / "report.html"
        write_text(out, render(result))
    return out


def render(result: Result) -> str:
    filters = {"metric": format_metric, "score": format_score, "shade": shade, "interval": format_interval}
    filters["uri"] = lambda name: data_uri(result.folder / GALLERY / name)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    score = headline(result)
    rankings = rank_classes(result.scores, score) if score else {}
    return render_template(
        "page.html.j2",
        filters,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        run=result.run,
        score=score,
        overview=overview(result, score),
        calibration=result.calibration,
        decisions=decisions(result),
        table=table(result),
        regions=regions(result),
        histograms=histograms(result, score, rankings),
        roc=roc(result.scores, score, rankings),
        gallery=result.gallery,
        picks=PICKS,
        training=training(result.run),
        config=yaml.safe_dump(result.run["config"], sort_keys=False, allow_unicode=True) if result.run.get("config") else "",
    )


def render_template(name: str, filters: dict[str, Callable], **values: Any) -> str:
    """A page of this folder, in the common style."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(style=style, **values)


def format_metric(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def shade(value: float) -> str:
    """How strongly a table cell is shaded, 0 to 1; not at all at 0.5, the value of a random score."""
    return "0" if math.isnan(value) else f"{min(max(2 * value - 1, 0), 1):.2f}"


def headline(result: Result) -> str | None:
    """The image score that the page is about, if scores.csv has it: the calibration's, else that of the evaluation."""
    known = list(result.scores.scores) if result.scores else []
    calibrated = result.calibration.score if result.calibration else None
    wanted = (calibrated, result.run.get("score"), result.gallery.score if result.gallery else None, "max", *known)
    return next((name for name in wanted if name in known), None)


def rank_classes(scores: Scores, score: str) -> dict[str, Ranking | None]:
    """The ranking of each class's images: the lowest AUROC first, at the end None for classes with one label only."""
    rankings = {clsname: rank_images(*scores.of(clsname, score)) for clsname in sorted(set(scores.clsnames.tolist()))}
    return dict(sorted(rankings.items(), key=lambda item: auroc(item[1]) if item[1] else math.inf))


def overview(result: Result, score: str | None) -> list[tuple[str, str, str]]:
    """Title, value and remark of the numbers at the head of the page."""
    tiles = []
    means = dict(zip(result.metrics.columns, result.metrics.mean, strict=False))
    for name, title in ((score, f"Image AUROC, {score}"), ("pixel", "Pixel AUROC")):
        if (name, "auc") in means:
            interval = result.intervals.get(f"mean_{name}_auc")
            remark = f"mean of the classes, 95 %: {format_interval(interval)}" if interval else "mean of the classes"
            tiles.append((title, format_metric(means[name, "auc"]), remark))
    if result.scores:
        defective, total = int(result.scores.labels.sum()), len(result.scores.labels)
        tiles.append(("Test images", f"{total:,}", f"{total - defective:,} good, {defective:,} defective"))
        tiles.append(("Classes", f"{len(set(result.scores.clsnames.tolist())):,}", "one model for all of them"))
    return tiles


def decisions(result: Result) -> list[Sentence]:
    """A sentence for each class; none without a calibration of a score that scores.csv has."""
    calibration, scores = result.calibration, result.scores
    if calibration is None or scores is None or calibration.score not in scores.scores:
        return []
    return sentences(scores, calibration)[:HISTOGRAMS]


def regions(result: Result) -> dict[str, Any]:
    """The rates of each class as text, and the areas of regions on good and on defective images as a plot."""
    if not result.region_rates:
        return {}
    together = sum(result.region_rates.values(), RegionRates())
    rows = [(name, rates.cells()) for name, rates in [*list(result.region_rates.items())[:ROWS], ("all classes", together)]]
    areas = result.region_areas
    labels = np.repeat([0, 1], [len(areas.get(label, ())) for label in (0, 1)])
    values = np.concatenate([areas.get(label, ()) for label in (0, 1)])
    alt = f"Histogram of the areas of {np.sum(labels == 0)} regions on good and {np.sum(labels == 1)} on defective images"
    plot = plots.histogram(alt, values, labels, None, log=True) if len(values) else None
    return {"header": HEADER, "rows": rows, "plot": plot}


def table(result: Result) -> dict[str, Any]:
    """The results table: a cell is a value and its interval; the mean, and for several classes pooled AUROCs, form the foot."""
    metrics, intervals = result.metrics, result.intervals
    if not metrics.columns:
        return {}
    keys = [f"{name}_{kind}" for name, kind in metrics.columns]

    def cells(row: str, values: Sequence[float]) -> list[tuple[float, tuple[float, float, float] | None]]:
        return [(value, intervals.get(f"{row}_{key}")) for key, value in zip(keys, values, strict=True)]

    ids = {clsname: f"class-{place}" for place, clsname in enumerate(result.gallery.classes)} if result.gallery else {}
    counts: dict[str, list[int]] = {}
    if result.scores:
        for clsname, label in zip(result.scores.clsnames, result.scores.labels, strict=True):
            counts.setdefault(clsname, [0, 0])[label] += 1
    rows = [
        {"name": clsname, "id": ids.get(clsname), "counts": counts.get(clsname, "––"), "cells": cells(clsname, values)}
        for clsname, values in metrics.rows.items()
    ]
    foot = {"mean" if len(rows) > 1 else "mean of 1 class": cells("mean", metrics.mean)} if metrics.mean else {}
    pooled = [intervals.get(f"pooled_{key}") for key in keys]
    if any(pooled):
        foot["one threshold"] = [(interval[0] if interval else math.nan, interval) for interval in pooled]
    titles = [(KINDS[kind], name) for name, kind in metrics.columns]
    return {"columns": titles, "rows": rows[:ROWS], "left_out": len(rows[ROWS:]), "foot": foot, "intervals": bool(intervals)}


def histograms(result: Result, score: str | None, rankings: dict[str, Ranking | None]) -> dict[str, Any]:
    """A plot a class, sorted by name; if the class has a calibrated threshold, with it and the rates at it."""
    calibration = result.calibration
    thresholds = calibration.classes if calibration and calibration.score == score else {}
    items = []
    for clsname in sorted(list(rankings)[:HISTOGRAMS]):
        values, labels = result.scores.of(clsname, score)
        threshold = thresholds[clsname].threshold if clsname in thresholds else None
        rates = rates_at(math.inf if threshold is None else threshold, values, labels)  # without a threshold only counts
        alt = f"Histogram of the {score} scores of {rates.good} good and {rates.defective} defective images of {clsname}"
        plot = plots.histogram(alt, values, labels, threshold)
        items.append({"name": clsname, "rates": rates, "plot": plot, "threshold": threshold})
    return {"items": items, "of": len(rankings), "rate": calibration.false_alarm_rate if thresholds else None}


def roc(scores: Scores | None, score: str | None, rankings: dict[str, Ranking | None]) -> dict[str, Any]:
    """The curves of the classes that have both labels; the lowest are named."""
    ranked = {clsname: ranking for clsname, ranking in rankings.items() if ranking}
    if not ranked:
        return {}
    aurocs = {clsname: auroc(ranking) for clsname, ranking in ranked.items()}
    named, mean = list(aurocs.items())[: len(plots.NAMED)], float(np.mean(list(aurocs.values())))
    everything = (scores.scores[score], scores.labels)
    return {
        "plot": plots.roc(f"ROC curves of {len(ranked)} classes, mean AUROC {mean:.4f}", [*ranked.values()], CURVES, everything),
        "named": named,
        "faint": min(len(ranked), CURVES) - len(named),
        "of": len(ranked),
        "mean": mean,
        "together": auroc(rank_images(*everything)),
    }


def data_uri(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    return f"data:image/{'png' if path.suffix == '.png' else 'jpeg'};base64,{base64.b64encode(content).decode()}"


def training(run: dict[str, Any]) -> list[Markup]:
    """Plots of the loss and of the key metric against the epoch, as far as there are numbers."""
    history = run.get("history") or []
    evaluator = (run.get("config") or {}).get("evaluator")
    key = evaluator.get("key_metric") if isinstance(evaluator, dict) else None
    found = []
    for name, label in (("loss", "training loss"), (key, key)):
        known = [item for item in history if isinstance(item.get(name), int | float) and math.isfinite(item[name])]
        if known:
            epochs, values = [item["epoch"] for item in known], [item[name] for item in known]
            first, last = (f"{values[end]:.4g} at epoch {epochs[end]:.0f}" for end in (0, -1))
            found.append(plots.training_curve(f"{label} against the epoch: {first} to {last}", label, epochs, values))
    return found
