"""Result folders as one table: runs over the same classes as mean ± standard deviation, models of one class each joined."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.evaluation.results import Column, Results, align_table, header, mean, read_results, without_nan, write_table
from utils.files import write_text
from utils.report.result_folder import read_run


@dataclass
class Summary:
    """For each class, then "mean", and each column the numbers found: one a run, or a single one if folders are joined."""

    title: str
    columns: list[Column]
    rows: list[tuple[str, list[Sequence[float]]]]

    def cells(self) -> list[list[str]]:
        return [[row, *map(format_numbers, values)] for row, values in self.rows]


def summarize(folders: Sequence[str | Path]) -> Summary:
    """Folders with the same classes are runs; folders that share no class are joined; a single one is shown as it is.

    Raises UserError for anything in between, for folders of other metrics, and naming a file that is missing or not readable.
    """
    found = read_folders(folders)
    first, *others = tables = list(found.values())
    if not others or any(table.classes.keys() != first.classes.keys() for table in others):
        rows = [(row, [[value] for value in values]) for row, values in join(found).rows]
        return Summary(f"{len(tables)} folders joined" if others else str(next(iter(found))), first.columns, rows)
    seeds = [read_seed(folder) for folder in found]
    known = f", random_seed {', '.join(map(str, seeds))}" if None not in seeds else ""
    rows = [(clsname, list(zip(*(table.classes[clsname] for table in tables), strict=True))) for clsname in first.classes]
    rows.append(("mean", list(zip(*(table.mean for table in tables), strict=True))))
    return Summary(f"mean ± standard deviation of {len(tables)} runs{known}", first.columns, rows)


def write_joined(folders: Sequence[str | Path], out: str | Path) -> str:
    """Write metrics.json and table.txt of folders that share no class into `out`; returns the table. Raises as summarize."""
    results = join(read_folders(folders))
    write_table(out, results)
    return results.format()


def read_folders(folders: Sequence[str | Path]) -> dict[Path, Results]:
    """The metrics of each folder; all have the same columns."""
    found: dict[Path, Results] = {}
    for folder in map(Path, folders):
        if folder.resolve() in [other.resolve() for other in found]:
            raise UserError(f"{folder}: is given twice")
        if not (folder / "metrics.json").is_file():
            raise UserError(f"{folder / 'metrics.json'}: there is no such file; evaluate with -e to write it")
        found[folder] = read_results(folder / "metrics.json")
        first, *_ = found
        if found[folder].columns != found[first].columns:
            names, others = (", ".join(map(" ".join, found[path].columns)) for path in (folder, first))
            raise UserError(f"{folder}: has the metrics {names}, and {first} has {others}: they must be the same")
    return found


def read_seed(folder: Path) -> Any:
    """The random_seed in the folder's run.json; None if it is not known."""
    run = read_run(folder / "run.json") if (folder / "run.json").is_file() else {}
    return (run.get("config") or {}).get("random_seed")


def join(found: Mapping[Path, Results]) -> Results:
    """All classes and their mean. Raises UserError for a class that two folders have."""
    owners: dict[str, Path] = {}
    for folder, results in found.items():
        for clsname in results.classes:
            if clsname in owners:
                raise UserError(
                    f"the class '{clsname}' is in {owners[clsname]} and in {folder}, which have other classes too: "
                    "name runs over the same classes, or folders that share none"
                )
            owners[clsname] = folder
    columns = next(iter(found.values())).columns
    return Results.of_classes(columns, {clsname: found[folder].classes[clsname] for clsname, folder in owners.items()})


def deviation(numbers: Sequence[float]) -> float:
    """The standard deviation of the sample (n - 1) of the numbers that are not nan; nan of fewer than two."""
    known = [number for number in numbers if not math.isnan(number)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def format_numbers(numbers: Sequence[float]) -> str:
    """Mean and deviation; if some folders have no number, also how many do."""
    count, spread = sum(not math.isnan(number) for number in numbers), deviation(numbers)
    text = f"{mean(numbers):.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}")
    return text if count in (0, len(numbers)) else f"{text} ({count} of {len(numbers)})"


def format_text(summary: Summary) -> str:
    return f"{summary.title}\n{align_table(header(summary.columns), summary.cells())}"


def format_markdown(summary: Summary) -> str:
    names = header(summary.columns)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *summary.cells()]
    return "\n".join([summary.title, "", *("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)])


def format_json(summary: Summary) -> str:
    """By key of metrics.json: mean, std (of the sample; null below two numbers) and n, the number of folders that have one."""
    content = {}
    for row, cells in summary.rows:
        for column, numbers in zip(summary.columns, cells, strict=True):
            statistics = without_nan({"mean": mean(numbers), "std": deviation(numbers)})
            content[f"{row}_{column}"] = {**statistics, "n": sum(not math.isnan(number) for number in numbers)}
    return json.dumps(content, indent=1)


FORMATS = {".json": format_json, ".md": format_markdown, ".txt": format_text}


def write_summary(summary: Summary, path: str | Path) -> None:
    """Write JSON, Markdown or text, as the path's ending says. Raises UserError for another ending."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: the ending says what is written, one of {', '.join(FORMATS)}")
    write_text(path, FORMATS[path.suffix](summary) + "\n")
