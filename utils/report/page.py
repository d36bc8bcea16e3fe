"""The report of an evaluation: a result folder as one HTML file that needs nothing else."""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.errors import UserError
from utils.evaluation.calibration import Calibration, rates_at
from utils.evaluation.evaluate import GALLERY
from utils.evaluation.metrics import auroc, rank_images
from utils.evaluation.results import AGAIN
from utils.files import write_text
from utils.report import plots
from utils.report.result_folder import Result, Scores, read_result

HERE = Path(__file__).parent
LIMIT = 20_000_000  # bytes, of a page
ROWS, HISTOGRAMS, CURVES = 1000, 60, 48  # classes that table, histograms and ROC curves show at most; the lowest are kept
KINDS = {"auc": "AUROC", "ap": "AP", "f1max": "F1-max", "aupro": "AUPRO"}
PICKS = {
    "most": "Most anomalous",
    "least": "Least anomalous",
    "good_highest": "Good images with the highest scores",
    "defective_lowest": "Defective images with the lowest scores",
}


def write_report(result_dir: str | Path, out: str | Path | None = None) -> Path:
    """Render the result folder's files as <result_dir>/report.html, or as `out`; returns the page's path.

    What is not there is said in its section. The page stays below 20 MB: its pictures are left out where they do not fit.
    Raises UserError naming the file that cannot be read or written.
    """
    result = read_result(result_dir)
    page = render(result, gallery(result))
    if len(page.encode()) > LIMIT:
        page = render(result, {"missing": f"The pictures are left out: the page would be larger than 20 MB; {AGAIN}."})
    out = Path(out) if out else result.folder / "report.html"
    write_text(out, page)
    return out


def render(result: Result, gallery: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"metric": format_metric, "score": format_score, "shade": shade, "interval": format_interval}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    score = headline(result)
    aurocs = class_aurocs(result.scores, score)
    return environment.get_template("page.html.j2").render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        run=result.run,
        score=score,
        overview=overview(result, score),
        table=table(result, gallery),
        histograms=histograms(result.scores, score, aurocs, result.calibration),
        roc=roc(result.scores, score, aurocs),
        gallery=gallery,
        training=training(result.run),
        config=yaml.safe_dump(result.run["config"], sort_keys=False, allow_unicode=True) if result.run.get("config") else "",
    )


def format_metric(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def format_interval(interval: tuple[float, float, float]) -> str:
    """interval: value, low, high."""
    return "{1:.3f}–{2:.3f}".format(*interval)


def format_score(value: float) -> str:
    return f"{value:#.4g}"


def shade(value: float) -> str:
    """How strongly a table cell is shaded, 0 to 1: none at 0.5, where a metric says nothing."""
    return "0" if math.isnan(value) else f"{min(max(2 * value - 1, 0), 1):.2f}"


def headline(result: Result) -> str | None:
    """The image score that the page is about, if scores.csv has it."""
    there = list(result.scores.scores) if result.scores else []
    wanted = (result.run.get("score"), result.gallery.score if result.gallery else None, "max", *there)
    return next((name for name in wanted if name in there), None)


def class_aurocs(scores: Scores | None, score: str | None) -> dict[str, float]:
    """By class, sorted; nan where only one label occurs."""
    if scores is None or score is None:
        return {}
    found = {}
    for clsname in sorted(set(scores.clsnames.tolist())):
        chosen = scores.clsnames == clsname
        ranking = rank_images(scores.scores[score][chosen], scores.labels[chosen])
        found[clsname] = math.nan if ranking is None else auroc(ranking)
    return found


def lowest(values: dict[str, float], most: int) -> list[str]:
    """The names of the `most` lowest values, lowest first; nan comes last."""
    return sorted(values, key=lambda name: (math.isnan(values[name]), values[name]))[:most]


def overview(result: Result, score: str | None) -> list[tuple[str, str, str]]:
    """(what, value, remark) of the numbers at the head of the page."""
    tiles = []
    means = dict(zip(result.metrics.columns, result.metrics.mean, strict=False))
    for name, title in ((score, f"Image AUROC, {score}"), ("pixel", "Pixel AUROC")):
        if (name, "auc") in means:
            interval = result.intervals.get(f"mean_{name}_auc")
            remark = f"mean of the classes, 95 %: {format_interval(interval)}" if interval else "mean of the classes"
            tiles.append((title, format_metric(means[name, "auc"]), remark))
    if result.scores:
        defective = int(result.scores.labels.sum())
        total = len(result.scores.labels)
        tiles.append(("Test images", f"{total:,}", f"{total - defective:,} good, {defective:,} defective"))
        tiles.append(("Classes", f"{len(set(result.scores.clsnames.tolist())):,}", "one model for all of them"))
    return tiles


def table(result: Result, gallery: dict[str, Any]) -> dict[str, Any]:
    """Columns and rows of the results table, a cell a value and its interval; apart the mean and, for several classes, pooled."""
    intervals = result.intervals
    metrics = result.metrics
    keys = [f"{name}_{kind}" for name, kind in metrics.columns]

    def cells(row: str, values: Sequence[float]) -> list[tuple[float, tuple[float, float, float] | None]]:
        return [(value, intervals.get(f"{row}_{key}")) for key, value in zip(keys, values, strict=True)]

    links = {entry["name"]: entry["id"] for entry in gallery.get("classes", ())}
    counts: dict[str, list[int]] = {}
    if result.scores:
        for clsname, label in zip(result.scores.clsnames, result.scores.labels, strict=True):
            counts.setdefault(clsname, [0, 0])[label] += 1
    rows = [
        {"name": clsname, "id": links.get(clsname), "counts": counts.get(clsname), "cells": cells(clsname, values)}
        for clsname, values in metrics.rows.items()
    ]
    foot = {"mean": cells("mean", metrics.mean)} if metrics.mean else {}
    pooled = [intervals[key][0] if (key := f"pooled_{column}") in intervals else math.nan for column in keys]
    if not all(map(math.isnan, pooled)):
        foot["one threshold"] = cells("pooled", pooled)
    return {
        "columns": [(KINDS[kind], name) for name, kind in metrics.columns],
        "rows": rows[:ROWS],
        "left_out": len(rows[ROWS:]),
        "foot": foot,
        "intervals": bool(intervals),
    }


def histograms(
    scores: Scores | None, score: str | None, aurocs: dict[str, float], calibration: Calibration | None
) -> dict[str, Any]:
    """A plot a class, sorted by name, with the class's calibrated threshold, and what it does, where there is one."""
    thresholds = calibration.classes if calibration and calibration.score == score else {}
    shown = sorted(lowest(aurocs, HISTOGRAMS))
    items = []
    for clsname in shown:
        good, defective = (scores.of(clsname, label, score) for label in (0, 1))
        together = np.concatenate([good, defective])
        threshold = thresholds[clsname].threshold if clsname in thresholds else None
        if threshold is not None:
            together = np.append(together, threshold)
        bounds = (float(together.min()), float(together.max()))
        alt = f"Histogram of the {score} scores of {len(good)} good and {len(defective)} defective images of {clsname}"
        plot = plots.histogram(f"histogram-{len(items)}", alt, good, defective, bounds, threshold)
        item = {"name": clsname, "good": len(good), "defective": len(defective), "plot": Markup(plot), "threshold": threshold}
        if threshold is not None:
            chosen = scores.clsnames == clsname
            item["rates"] = rates_at(threshold, scores.scores[score][chosen], scores.labels[chosen])
        items.append(item)
    return {"items": items, "of": len(aurocs), "rate": calibration.false_alarm_rate if thresholds else None}


def roc(scores: Scores | None, score: str | None, aurocs: dict[str, float]) -> dict[str, Any]:
    """The curves of the classes that have one, the lowest named."""
    there = {clsname: value for clsname, value in aurocs.items() if not math.isnan(value)}
    if not there:
        return {}
    order = lowest(there, len(there))
    curves = [(scores.scores[score][scores.clsnames == clsname], scores.labels[scores.clsnames == clsname]) for clsname in order]
    named = order[: len(plots.NAMED)]
    everything = (scores.scores[score], scores.labels)
    alt = f"ROC curves of {len(there)} classes, mean AUROC {np.mean(list(there.values())):.4f}"
    return {
        "plot": Markup(plots.roc("roc", alt, curves, CURVES, everything)),
        "named": [(clsname, there[clsname]) for clsname in named],
        "faint": min(len(order), CURVES) - len(named),
        "of": len(order),
        "mean": float(np.mean(list(there.values()))),
        "together": auroc(rank_images(*everything)),
    }


def gallery(result: Result) -> dict[str, Any]:
    """The classes with their picks, pictures as data: URIs."""
    found = result.gallery
    if found is None:
        return {"missing": "No gallery: evaluate with -e to write one."}
    folder = result.folder / GALLERY
    uris = {name: data_uri(folder / name) for image in found.images for name in image.pictures.values()}
    classes = []
    for place, (clsname, entry) in enumerate(found.classes.items()):
        counts = {"good": entry.good, "defective": entry.defective}
        picks = []
        for pick, title in PICKS.items():
            label = {"good_highest": "good", "defective_lowest": "defective"}.get(pick)
            none = f"There is no {label} image in this class." if label and not counts[label] else "Left out: the page is full."
            picks.append({"title": title, "images": entry.picks.get(pick, []), "none": none})
        classes.append({"name": clsname, "id": f"class-{place}", "picks": picks, **counts})
    scale = {"low": found.low, "high": found.high}
    return {"classes": classes, "uris": uris, "score": found.score, "left_out": found.left_out, **scale}


def data_uri(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    return f"data:image/{'png' if path.suffix == '.png' else 'jpeg'};base64,{base64.b64encode(content).decode()}"


def training(run: dict[str, Any]) -> list[Markup]:
    """Plots of the loss and of the key metric against the epoch, each where there are numbers."""
    history = run.get("history") or []
    evaluator = (run.get("config") or {}).get("evaluator")
    key = evaluator.get("key_metric") if isinstance(evaluator, dict) else None
    found = []
    for name, label in (("loss", "training loss"), (key, key)):
        there = [item for item in history if isinstance(item.get(name), int | float) and math.isfinite(item[name])]
        points = [(item["epoch"], item[name]) for item in there]
        if points:
            epochs, values = zip(*points, strict=True)
            ends = [f"{values[end]:.4g} at epoch {epochs[end]:.0f}" for end in (0, -1)]
            alt = f"{label} against the epoch: {' to '.join(ends)}"
            found.append(Markup(plots.training_curve(f"training-{len(found)}", alt, label, epochs, values)))
    return found
