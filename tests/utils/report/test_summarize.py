"""tools/summarize.py: seeds as mean ± standard deviation, models of one class each as one table, anything else as one line."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT, environment
from utils.errors import UserError
from utils.report.summary import FORMATS, format_text, summarize, write_summary

Rows = dict[str, tuple[float | None, ...]]  # by class, AUROC of max and of pixel
SEEDS: list[Rows] = [
    {"cup": (0.9, 0.95), "tile": (0.7, None), "mean": (0.8, 0.95)},
    {"cup": (0.8, 0.91), "tile": (0.6, 0.9), "mean": (0.7, 0.905)},
    {"cup": (0.85, 0.92), "tile": (0.8, 0.94), "mean": (0.825, 0.93)},
]


def write(folder: Path, rows: Rows, seed: int | None = None, names: tuple[str, ...] = ("max", "pixel")) -> Path:
    folder.mkdir(parents=True)
    numbers = {f"{c}_{name}_auc": value for c, row in rows.items() for name, value in zip(names, row, strict=True)}
    (folder / "metrics.json").write_text(json.dumps(numbers))
    if seed is not None:
        (folder / "run.json").write_text(json.dumps({"config": {"random_seed": seed}}))
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"seed{n}", rows, n) for n, rows in enumerate(SEEDS, 1)]


def read_json(tmp_path: Path, folders: list[Path]) -> dict[str, dict[str, float | None]]:
    write_summary(summarize(folders), tmp_path / "summary.json")
    return json.loads((tmp_path / "summary.json").read_text())


def test_the_same_classes_in_every_folder_are_runs_with_mean_and_sample_deviation(tmp_path: Path, seeds: list[Path]):
    found = read_json(tmp_path, seeds)
    assert list(found) == [f"{c}_{name}_auc" for c in ("cup", "tile", "mean") for name in ("max", "pixel")]
    for clsname in ("cup", "tile", "mean"):
        for place, name in enumerate(("max", "pixel")):
            there = [rows[clsname][place] for rows in SEEDS if rows[clsname][place] is not None]
            entry = found[f"{clsname}_{name}_auc"]
            assert entry["mean"] == pytest.approx(statistics.mean(there))
            assert entry["std"] == pytest.approx(statistics.stdev(there))
            assert entry["n"] == len(there)


def test_the_text_says_how_many_runs_which_seeds_and_where_numbers_are_missing(seeds: list[Path]):
    title, header, _, cup, tile, _, mean = format_text(summarize(seeds)).splitlines()
    assert title == "mean ± standard deviation of 3 runs, random_seed 1, 2, 3"
    assert header.split() == ["clsname", "max", "pixel"]
    assert [" ".join(row.split()) for row in (cup, tile, mean)] == [
        "cup 0.8500 ± 0.0500 0.9267 ± 0.0208",
        "tile 0.7000 ± 0.1000 0.9200 ± 0.0283 (2 of 3)",
        "mean 0.7750 ± 0.0661 0.9283 ± 0.0225",
    ]


def test_folders_that_share_no_class_are_joined_with_the_mean_over_their_classes(tmp_path: Path):
    tile = write(tmp_path / "tile/result", {"tile": (0.7, None), "mean": (0.7, None)})
    rest = write(tmp_path / "rest/result", {"cup": (0.9, 0.95), "nut": (0.5, 0.75), "mean": (0.7, 0.85)})
    title, _, _, *rows = format_text(summarize([tile, rest])).splitlines()
    assert title == "2 folders joined"
    assert [row.split() for row in rows if "--" not in row] == [
        ["cup", "0.9000", "0.9500"],
        ["nut", "0.5000", "0.7500"],
        ["tile", "0.7000", "nan"],
        ["mean", "0.7000", "0.8500"],
    ]
    found = read_json(tmp_path, [tile, rest])
    assert found["tile_pixel_auc"] == {"mean": None, "std": None, "n": 0}
    assert found["mean_max_auc"] == {"mean": pytest.approx(0.7), "std": None, "n": 1}


def test_one_folder_is_its_own_table(seeds: list[Path]):
    title, *rows = format_text(summarize(seeds[:1])).splitlines()
    assert title == str(seeds[0])
    assert rows[-1].split() == ["mean", "0.8000", "0.9500"]


def test_a_number_that_no_run_has_is_null(tmp_path: Path):
    folders = [write(tmp_path / name, {"cup": (0.5, None), "mean": (0.5, None)}) for name in "ab"]
    assert read_json(tmp_path, folders)["cup_pixel_auc"] == {"mean": None, "std": None, "n": 0}
    assert format_text(summarize(folders)).splitlines()[-1].split() == ["mean", "0.5000", "±", "0.0000", "nan"]


def test_markdown_has_the_same_cells_as_the_text(tmp_path: Path, seeds: list[Path]):
    write_summary(summarize(seeds), tmp_path / "summary.md")
    title, _, *lines = (tmp_path / "summary.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert title.startswith("mean ± standard deviation of 3 runs")
    assert cells[0] == ["clsname", "max", "pixel"]
    assert cells[1] == ["---", "---:", "---:"]
    assert cells[3] == ["tile", "0.7000 ± 0.1000", "0.9200 ± 0.0283 (2 of 3)"]


def test_other_kinds_of_metrics_are_named_in_the_header(tmp_path: Path):
    folder = tmp_path / "result"
    folder.mkdir()
    numbers = {f"{clsname}_{key}": 0.5 for clsname in ("cup", "mean") for key in ("max_auc", "pixel_aupro")}
    (folder / "metrics.json").write_text(json.dumps(numbers))
    assert format_text(summarize([folder])).splitlines()[1].split() == ["clsname", "max_auc", "pixel_aupro"]


# --- what cannot be joined ---


def refused(*folders: Path) -> str:
    with pytest.raises(UserError) as caught:
        summarize(folders)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_share_some_classes_only_are_an_error(tmp_path: Path, seeds: list[Path]):
    other = write(tmp_path / "other", {"cup": (0.5, 0.5), "nut": (0.5, 0.5), "mean": (0.5, 0.5)})
    output = refused(seeds[0], other)
    assert output.startswith(f"the class 'cup' is in {seeds[0]} and in {other}")
    assert "runs over the same classes, or folders that share none" in output


def test_folders_of_other_metrics_are_an_error(tmp_path: Path, seeds: list[Path]):
    other = write(tmp_path / "other", SEEDS[0], names=("mean", "pixel"))
    assert refused(seeds[0], other) == (
        f"{other}: has the metrics mean auc, pixel auc, and {seeds[0]} has max auc, pixel auc: they must be the same"
    )


def test_a_folder_given_twice_is_an_error(seeds: list[Path]):
    assert refused(seeds[0], seeds[1], seeds[0].parent / "seed2/../seed1").endswith("seed1: is given twice")


def test_a_missing_or_broken_file_is_named(tmp_path: Path, seeds: list[Path]):
    assert refused(tmp_path / "none").startswith(f"{tmp_path}/none/metrics.json: there is no such file")
    for content in ("{", "{}", '{"max": 1}', '{"cup_max_auc": "high"}', '{"mean_max_auc": 0.5}'):
        (seeds[1] / "metrics.json").write_text(content)
        assert refused(*seeds).startswith(f"{seeds[1]}/metrics.json: "), content


def test_an_ending_that_is_no_format_is_an_error(tmp_path: Path, seeds: list[Path]):
    with pytest.raises(UserError, match=r"summary\.csv: .*\.json, \.md, \.txt"):
        write_summary(summarize(seeds), tmp_path / "summary.csv")
    assert list(FORMATS) == [".json", ".md", ".txt"]


# --- the tool ---


def tool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/summarize.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


def test_the_tool_prints_the_table_and_writes_the_file(tmp_path: Path, seeds: list[Path]):
    done = tool("seed1", "seed2", "--out", "new/summary.txt", "seed3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == format_text(summarize(seeds)) + "\n"
    assert (tmp_path / "new/summary.txt").read_text() == done.stdout


def test_the_tools_errors_are_one_line_and_exit_code_2(tmp_path: Path, seeds: list[Path]):
    done = tool("seed1", "seed4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: seed4/metrics.json: there is no such file; evaluate with -e to write it\n"
