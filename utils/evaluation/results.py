"""The metrics of an evaluation as a table of classes and columns, and the files that hold them. Nothing here imports torch.

Only this file joins a class, a score and a kind of metric to a key such as "screw_pixel_aupro", and splits one.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError
from utils.files import write_text

KINDS = {"auc": "AUROC", "ap": "AP", "f1max": "F1-max", "aupro": "AUPRO"}  # kinds of metric and their titles
GALLERY = "report_gallery"  # folder of the report's pictures, in the result folder
INTERVALS = "intervals.json"
AGAIN = "evaluate again with -e"


class Column(NamedTuple):
    """A column of the table, "max_auc" as text."""

    score: str  # mean, std, max or pixel
    kind: str  # one of KINDS

    def __str__(self) -> str:
        return f"{self.score}_{self.kind}"


class Interval(NamedTuple):
    """A metric of the test images, and the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Intervals = dict[tuple[str, Column], Interval | None]  # by row (a class, "mean" or "pooled") and column; None: no number


@dataclass(frozen=True)
class Results:
    """A row a class and their mean, a value a column; nan: no number."""

    columns: list[Column]
    classes: dict[str, list[float]]  # sorted by name
    mean: list[float]  # over the classes that have a number

    @classmethod
    def of_classes(cls, columns: Sequence[Column], classes: Mapping[str, list[float]]) -> "Results":
        """Sorts the classes and adds their mean."""
        classes = dict(sorted(classes.items()))
        return cls(list(columns), classes, [mean(values) for values in zip(*classes.values(), strict=True)])

    @property
    def rows(self) -> list[tuple[str, list[float]]]:
        return [*self.classes.items(), ("mean", self.mean)]

    def to_dict(self) -> dict[str, float]:
        """The numbers by the keys of metrics.json."""
        return {f"{row}_{column}": v for row, values in self.rows for column, v in zip(self.columns, values, strict=True)}

    def format(self) -> str:
        return align_table(header(self.columns), [[row, *(f"{value:.4f}" for value in values)] for row, values in self.rows])


def mean(numbers: Sequence[float]) -> float:
    """The mean of the numbers that are not nan; nan if there is none."""
    known = [number for number in numbers if not math.isnan(number)]
    return float(np.mean(known)) if known else math.nan


def split_key(key: str) -> tuple[str, Column]:
    """The row and the column of a key; the name of a class may hold underscores. Raises ValueError if it is no key."""
    row, score, kind = key.rsplit("_", 2)
    if kind not in KINDS:
        raise ValueError(f"{kind} is no kind of metric")
    return row, Column(score, kind)


def header(columns: Sequence[Column]) -> list[str]:
    """The header of a table; a table of AUROCs alone names only the scores."""
    only_auc = all(column.kind == "auc" for column in columns)
    return ["clsname", *(column.score if only_auc else str(column) for column in columns)]


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column aligned left, the others right, a rule above the last row."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(cells))

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])])


def without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers with null in place of nan, which JSON does not have."""
    return {key: None if math.isnan(value) else value for key, value in numbers.items()}


def write_table(folder: str | Path, results: Results) -> None:
    """Write metrics.json and table.txt into the result folder, and remove all other files of an earlier evaluation."""
    folder = Path(folder)
    write_text(folder / "metrics.json", json.dumps(without_nan(results.to_dict()), indent=1) + "\n")
    for name in ("report.html", "run.json", "scores.csv", INTERVALS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / GALLERY, ignore_errors=True)
    write_text(folder / "table.txt", results.format() + "\n")


def write_intervals(folder: str | Path, intervals: Intervals) -> None:
    """Write intervals.json into the result folder: value, low and high, or null, by the keys of metrics.json."""
    content = {f"{row}_{column}": found and found._asdict() for (row, column), found in intervals.items()}
    write_text(Path(folder) / INTERVALS, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__} in place of a JSON object; {AGAIN}")
    return content


def number(value: Any) -> float:
    """A JSON value as a number; null is nan. Raises TypeError for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def read_results(path: Path) -> Results:
    """Read metrics.json. Raises UserError naming the file and the key."""
    found: dict[str, dict[Column, float]] = {}
    for key, value in read_json(path).items():
        try:
            row, column = split_key(key)
            found.setdefault(row, {})[column] = number(value)
        except ValueError:
            raise UserError(f"{path}: the key '{key}' is not <class>_<score>_<metric>; {AGAIN}") from None
        except TypeError as error:
            raise UserError(f"{path}: {key}: {error}; {AGAIN}") from None
    columns = list(dict.fromkeys(column for values in found.values() for column in values))
    rows = {row: [values.get(column, math.nan) for column in columns] for row, values in found.items()}
    if "mean" not in rows or len(rows) < 2:
        raise UserError(f"{path}: holds no classes and their mean; {AGAIN}")
    return Results(columns, mean=rows.pop("mean"), classes=rows)


def read_intervals(path: Path) -> Intervals:
    """Read intervals.json, also one that holds pixel metrics, as earlier versions wrote. Raises UserError naming the file."""
    try:
        return {
            split_key(key): None if entry is None else Interval(*(number(entry[name]) for name in Interval._fields))
            for key, entry in read_json(path).items()
        }
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: does not hold value, low and high of each metric; {AGAIN}") from None
