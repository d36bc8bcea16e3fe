"""Result folders as one table: runs over the same classes as mean ± standard deviation, models of one class each joined."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import UserError, printable
from utils.evaluation.evaluate import write_table
from utils.evaluation.results import AGAIN, Column, Results, align_table, header, mean, read_metrics, read_run, without_nan
from utils.files import lock, write_text


class ResultFolder(NamedTuple):
    path: Path
    metrics: Results
    seed: int | None  # None: run.json does not say


@dataclass
class Summary:
    """Of each class, "mean" last, and each column the numbers found: one a run, or one where classes are joined."""

    columns: list[Column]
    rows: dict[str, list[list[float]]]
    title: str


def summarize(folders: Sequence[str | Path]) -> Summary:
    """Folders that all have the same classes are runs; folders none of which share a class are joined. A single one is as it is.

    Raises UserError for anything in between, for folders of other metrics, and naming a file that is missing or not readable.
    """
    read = read_folders(folders)
    paths, runs, seeds = zip(*read, strict=True)
    if len(runs) > 1 and all(run.rows.keys() == runs[0].rows.keys() for run in runs):
        known = f", random_seed {', '.join(map(str, seeds))}" if None not in seeds else ""
        title = f"mean ± standard deviation of {len(runs)} runs{known}"
    else:
        title = f"{len(runs)} folders joined" if len(runs) > 1 else str(paths[0])
        runs = [join(read)]
    tables = [{**run.rows, "mean": run.mean} for run in runs]
    rows = {name: [list(cell) for cell in zip(*(table[name] for table in tables), strict=True)] for name in tables[0]}
    return Summary(runs[0].columns, rows, title)


def write_joined(folders: Sequence[str | Path], out: str | Path) -> str:
    """Write metrics.json and table.txt of folders that share no class into `out`; returns the table. Raises as summarize."""
    results = join(read_folders(folders))
    with lock(out):
        write_table(out, results)
    return results.text()


def read_folders(folders: Sequence[str | Path]) -> list[ResultFolder]:
    read = [read_folder(folder) for folder in folders]
    for position, folder in enumerate(read):
        if folder.path.resolve() in [other.path.resolve() for other in read[:position]]:
            raise UserError(f"{folder.path}: is given twice")
        if folder.metrics.columns != read[0].metrics.columns:
            names, others = (", ".join(map(" ".join, f.metrics.columns)) for f in (folder, read[0]))
            raise UserError(f"{folder.path}: has the metrics {names}, and {read[0].path} has {others}: they must be the same")
    return read


def read_folder(folder: str | Path) -> ResultFolder:
    folder = Path(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; evaluate with -e to write it")
    metrics = read_metrics(path)
    if not metrics.mean or not metrics.rows:
        raise UserError(f"{path}: holds no classes and their mean; {AGAIN}")
    run = read_run(folder / "run.json") if (folder / "run.json").is_file() else {}
    return ResultFolder(folder, metrics, (run.get("config") or {}).get("random_seed"))


def join(folders: Sequence[ResultFolder]) -> Results:
    """The rows of all classes and their mean. Raises UserError for a class that is there twice."""
    owners: dict[str, Path] = {}
    rows: dict[str, list[float]] = {}
    for folder in folders:
        for clsname, row in folder.metrics.rows.items():
            if clsname in owners:
                raise UserError(
                    f"the class '{clsname}' is in {owners[clsname]} and in {folder.path}, which have other classes too: "
                    "name runs over the same classes, or folders that share none"
                )
            owners[clsname], rows[clsname] = folder.path, row
    return Results.of(folders[0].metrics.columns, rows)


def mean_std_count(numbers: Sequence[float]) -> tuple[float, float, int]:
    """Of those that are not nan: their mean, the sample's deviation (n - 1; nan of fewer than two), and how many they are."""
    there = [number for number in numbers if not math.isnan(number)]
    return mean(there), float(np.std(there, ddof=1)) if len(there) > 1 else math.nan, len(there)


def cells_of(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text. A cell from fewer folders than there are says from how many."""
    return header(summary.columns), [[clsname, *map(format_numbers, row)] for clsname, row in summary.rows.items()]


def format_numbers(numbers: Sequence[float]) -> str:
    average, spread, count = mean_std_count(numbers)
    text = f"{average:.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}")
    return text if count in (0, len(numbers)) else f"{text} ({count} of {len(numbers)})"


def format_text(summary: Summary) -> str:
    return f"{summary.title}\n{align_table(*cells_of(summary))}"


def format_markdown(summary: Summary) -> str:
    titles, rows = cells_of(summary)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    cells = [[printable(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join([summary.title, "", *(f"| {' | '.join(line)} |" for line in cells)])


def format_json(summary: Summary) -> str:
    """By key of metrics.json mean, std (of the sample; null below two numbers) and n, from how many folders they are."""
    content = {}
    for clsname, row in summary.rows.items():
        for (name, kind), numbers in zip(summary.columns, row, strict=True):
            entry = zip(("mean", "std", "n"), mean_std_count(numbers), strict=True)
            content[f"{clsname}_{name}_{kind}"] = without_nan(dict(entry))
    return json.dumps(content, indent=1)


FORMATS = {".json": format_json, ".md": format_markdown, ".txt": format_text}


def write_summary(summary: Summary, path: Path) -> None:
    """As JSON, Markdown or text, by the ending. Raises UserError for another one."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: the ending says what is written, one of {', '.join(FORMATS)}")
    write_text(path, FORMATS[path.suffix](summary) + "\n")
