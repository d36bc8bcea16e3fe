"""The report of a prediction: scores, decisions and drift in the order in which the images came, as one HTML file.

It reads scores.csv and predict.json only, so it can be written while tools/predict.py --watch goes on.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.evaluation.calibration import Threshold, finite
from utils.evaluation.drift import ALARM, Drift
from utils.evaluation.results import read_json, share
from utils.files import write_text
from utils.predict.outputs import COLUMNS, Scored, complete_length, not_ours, parse_lines, scored, unique_name
from utils.reading import is_inside, read_bytes
from utils.report import plots
from utils.report.page import format_score, render_template
from utils.report.result_folder import check_own

PICTURES = 12  # of the last defective images
CHANGES = 20  # windows that are listed
PICTURE_BYTES = 4_000_000  # of one; ours are smaller


@dataclass(frozen=True)
class Prediction:
    """The folder of a prediction, as far as the report shows it."""

    folder: Path
    checkpoint: str
    score: str
    threshold: float | None
    normal: Threshold | None  # what scores are compared with; None: no calibration, or a folder of an earlier version
    lines: list[Scored]  # one or more


@dataclass(frozen=True)
class Window:
    """Images whose scores were compared with the calibration's."""

    first: int  # of its images, counted from 1
    last: int
    p: float


def write_prediction_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write <folder>/report.html, or `out`; returns its path. Raises UserError naming what cannot be read or written."""
    prediction = read_prediction(Path(folder))
    out = Path(out) if out else prediction.folder / "report.html"
    write_text(out, render(prediction))
    return out


def read_prediction(folder: Path) -> Prediction:
    """Raises UserError for a folder without scores, and naming the file that predict.py would not write."""
    path = folder / "predict.json"
    if not path.is_file():
        raise UserError(f"{folder}: holds no predict.json; name the folder that tools/predict.py wrote, its --out")
    check_own(path, folder)
    settings = read_json(path)
    try:
        threshold, normal = settings["threshold"], settings.get("normal")
        table = folder / {"csv": "scores.csv", "jsonl": "scores.jsonl"}[settings["format"]]
        values = (str(settings["checkpoint"]), str(settings["score"]), None if threshold is None else finite(threshold))
        values = (*values, None if normal is None else Threshold.from_dict(normal))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not written by tools/predict.py") from None
    check_own(table, folder)
    try:
        data = read_bytes(table)
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from None
    data = data[: complete_length(data, quotes=table.suffix == ".csv")]  # a run may write at this moment
    lines = scored(table, parse_lines(table, data, COLUMNS))
    if not lines:
        raise UserError(f"{table}: holds no image yet")
    if not all(is_inside(line.file) and PurePosixPath(line.file).name for line in lines):
        raise not_ours(table)
    return Prediction(folder, *values, lines)


def render(prediction: Prediction) -> str:
    scores = np.array([line.score for line in prediction.lines])
    called = np.array([line.verdict == "defective" for line in prediction.lines])
    defective = np.flatnonzero(called)
    shown = defective[::-1][:PICTURES]
    decided, count = prediction.threshold is not None, len(scores)
    shares = f"{share(len(defective), count)} of the images were called defective"
    return render_template(
        "prediction.html.j2",
        {"score": format_score, "p": "{:.2g}".format},
        prediction=prediction,
        count=count,
        defective=len(defective),
        rejects=share(len(defective), count),
        over_time=plots.scores_over_time(f"The scores of {count} images over time", scores, prediction.threshold),
        shares=plots.share_over_time(f"Over time: {shares}", called) if decided else None,
        drift=drift(prediction),
        alarm=ALARM,
        last=[(int(place) + 1, prediction.lines[place], picture(prediction, prediction.lines[place].file)) for place in shown],
    )


def drift(prediction: Prediction) -> dict[str, Any]:
    """In words, the plot, and the last windows that have changed; nothing without the calibration's scores."""
    if prediction.normal is None or not prediction.normal.scores:
        return {}
    found = Drift(prediction.normal)
    windows = find_windows(found, prediction.lines)
    changed = [window for window in windows if window.p < ALARM]
    plot = None
    if windows:
        ends, values = np.array([window.last for window in windows]), np.array([window.p for window in windows])
        alt = f"The p values of {len(windows)} windows over time, {len(changed)} of them below {ALARM}"
        plot = plots.p_over_time(alt, len(prediction.lines), ends, values, ALARM)
    return {
        "text": found.describe(),
        "plot": plot,
        "windows": len(windows),
        "changed": changed[::-1][:CHANGES],
        "of": len(changed),
    }


def find_windows(drift: Drift, lines: Sequence[Scored]) -> list[Window]:
    """The windows that the images fill, in their order."""
    windows: list[Window] = []
    for number, line in enumerate(lines, start=1):
        drift.add(line.score)
        if len(drift.values) > len(windows):
            windows.append(Window(windows[-1].last + 1 if windows else 1, number, drift.values[-1]))
    return windows


def picture(prediction: Prediction, file: str) -> str | None:
    """An image's picture as a URI; None where there is none. Raises UserError for one that predict.py would not write."""
    path = prediction.folder / "pictures" / unique_name(file, ".jpg")
    if not path.exists():
        return None
    check_own(path, prediction.folder)
    try:
        return f"data:image/jpeg;base64,{base64.b64encode(read_bytes(path, PICTURE_BYTES)).decode()}"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
