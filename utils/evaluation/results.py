"""The metrics of an evaluation as a table: a row a class, a column a metric; its text, and its file metrics.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, printable
from utils.files import write_text
from utils.reading import parse_json, read_bytes

Column = tuple[str, str]  # score name and kind of metric

KINDS = {"auc": "AUROC", "ap": "AP", "f1max": "F1-max", "aupro": "AUPRO"}  # of metrics, with their headings
AGAIN = "evaluate again with -e"


@dataclass
class Results:
    """The metrics of each class, and their means over the classes that have the number; nan: no number."""

    columns: list[Column]
    rows: dict[str, list[float]]  # by class, a value a column
    mean: list[float]

    @classmethod
    def of(cls, columns: Sequence[Column], rows: Mapping[str, Sequence[float]]) -> "Results":
        """With the classes sorted, and their mean."""
        table = {clsname: list(rows[clsname]) for clsname in sorted(rows)}
        return cls(list(columns), table, [mean(column) for column in zip(*table.values(), strict=True)])

    def numbers(self) -> dict[str, float]:
        """By key: <class>_<name>_<kind>, and last mean_<name>_<kind>."""
        lines = [*self.rows.items(), ("mean", self.mean)]
        return {f"{c}_{n}_{k}": v for c, row in lines for (n, k), v in zip(self.columns, row, strict=True)}

    def missing(self) -> list[str]:
        """The keys without a number: their class has images of one label only, or no masks."""
        return [key for key, value in self.numbers().items() if math.isnan(value)]

    def text(self) -> str:
        """A row a class, then the mean."""
        rows = [[name, *(f"{value:.4f}" for value in row)] for name, row in [*self.rows.items(), ("mean", self.mean)]]
        return align_table(header(self.columns), rows)

    def write(self, folder: Path) -> None:
        """metrics.json, with null for nan, and table.txt."""
        write_text(folder / "metrics.json", json.dumps(without_nan(self.numbers()), indent=1) + "\n")
        write_text(folder / "table.txt", self.text() + "\n")


def read_metrics(path: Path) -> Results:
    """metrics.json of a result folder. Raises UserError naming the file and the key that is wrong."""
    rows: dict[str, dict[Column, float]] = {}
    for key, value in read_json(path).items():
        clsname, *column = key.rsplit("_", 2)
        if len(column) != 2 or column[1] not in KINDS:
            raise UserError(f"{path}: the key '{key}' is not <class>_<score>_<metric>; {AGAIN}")
        try:
            rows.setdefault(clsname, {})[column[0], column[1]] = number(value)
        except TypeError as error:
            raise UserError(f"{path}: {key}: {error}; {AGAIN}") from None
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = {clsname: [row.get(column, math.nan) for column in columns] for clsname, row in rows.items()}
    return Results(columns, table, table.pop("mean", []))


def read_run(path: Path) -> dict[str, Any]:
    """run.json of a result folder. Raises UserError naming the file."""
    run = read_json(path)
    for key, kind in (("history", list), ("config", dict), ("versions", dict)):
        if not isinstance(run.get(key) or kind(), kind):
            raise UserError(f"{path}: '{key}' must be a {kind.__name__}; {AGAIN}")
    try:
        for item in run.get("history") or ():
            if not math.isfinite(number(item["epoch"])):
                raise TypeError
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path}: 'history' must hold objects with a number 'epoch'; {AGAIN}") from None
    return run


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path))
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


def without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers as JSON has them: nan becomes null."""
    return {key: None if math.isnan(value) else value for key, value in numbers.items()}


def mean(numbers: Sequence[float]) -> float:
    """Of those that are not nan; nan of none."""
    finite = [number for number in numbers if not math.isnan(number)]
    return float(np.mean(finite)) if finite else math.nan


def header(columns: Sequence[Column]) -> list[str]:
    """The first line of a table; the kind is left out where all are AUROC."""
    only_auc = all(kind == "auc" for _, kind in columns)
    return ["clsname", *(name if only_auc else f"{name}_{kind}" for name, kind in columns)]


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first to the left, the others to the right; the last row is set apart."""
    header, *rows = [list(map(printable, cells)) for cells in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(cells))

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])])


def share(count: int, total: int) -> str:
    """As "3/12 = 25.0 %"."""
    return f"{count}/{total} = {100 * count / total:.1f} %" if total else "–"


def percentages(interval: tuple[float, float]) -> str:
    """As "1.5–20.0 %"."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f} %"
