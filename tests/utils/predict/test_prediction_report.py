"""The report of a prediction: scores, decisions and drift over time, from the files of the folder."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.result_folders import EVIL, Page
from utils.errors import UserError
from utils.evaluation.calibration import Threshold, find_threshold
from utils.evaluation.decisions import Decision
from utils.predict.batches import Result
from utils.predict.outputs import LABELS, Output
from utils.predict.report import PICTURES, write_prediction_report
from utils.report.drawing import save_picture

rng = np.random.default_rng(0)
NORMAL = find_threshold(scores := rng.normal(10, 1, 300), scores, 0.05)


def write_prediction(
    out: Path, scores: np.ndarray, format: str = "csv", normal: Threshold | None = NORMAL, name: str = "{:06d}.png"
) -> Path:
    """The folder that predict.py leaves for images of these scores, with a picture of each that is defective."""
    out.mkdir(parents=True)
    settings = {**dict.fromkeys(LABELS), "checkpoint": "runs/ckpt.pth.tar", "score": "max", "format": format}
    settings |= {"threshold": normal and normal.threshold, "normal": normal and asdict(normal)}
    output, results, decisions = Output(out, settings), [], []
    for number, score in enumerate(scores.tolist(), start=1):
        verdict = None if normal is None else "defective" if score > normal.threshold else "good"
        results.append(Result(name.format(number), score=score))
        decisions.append(Decision(verdict, None, None, None, None))
        if verdict == "defective":
            save_picture(out, f"pictures/{results[-1].file}.jpg", np.full((8, 8, 3), number % 256, np.uint8))
    output.add(results, decisions)
    return out


def good(count: int, shift: float = 0.0) -> np.ndarray:
    """Scores of images that are all called good."""
    return np.minimum(np.random.default_rng(1).normal(10 + shift, 1, count), NORMAL.threshold - 1e-3)


def words(folder: Path) -> str:
    return Page(write_prediction_report(folder)).words()


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_it_says_when_scores_have_changed_and_which_images_those_are(tmp_path: Path, format: str) -> None:
    folder = write_prediction(tmp_path / "out", np.concatenate([good(300), good(100, -1.0), good(120)]), format)
    text = words(folder)
    assert "Drift 1 of 5 windows have changed" in text
    assert "images 301 to 400, 000301.png to 000400.png : p" in text
    assert "Now: none (p" in text


def test_it_counts_decisions_and_shows_the_last_defective_images(tmp_path: Path) -> None:
    scores = good(50)
    scores[10:40] = 20
    page = Page(write_prediction_report(write_prediction(tmp_path / "out", scores)))
    assert "Defective 30 30/50 = 60.0 %" in page.words()
    assert len(page.all("img")) == PICTURES
    assert page.words().index("000040.png image 40, score 20.00") < page.words().index("000029.png image 29")
    assert "000028.png" not in page.words()


def test_without_a_calibration_it_shows_scores_and_says_what_to_run(tmp_path: Path) -> None:
    page = Page(write_prediction_report(write_prediction(tmp_path / "out", good(50), normal=None)))
    assert len(page.all("svg")) == 1
    assert "No decisions" in page.words()
    assert page.words().count("tools/calibrate.py") == 2


def test_a_line_that_is_being_written_does_not_count_yet(tmp_path: Path) -> None:
    folder = write_prediction(tmp_path / "out", good(50))
    with open(folder / "scores.csv", "a") as file:
        file.write("half.png,1")
    before = (folder / "scores.csv").read_bytes()
    assert "Images 50" in words(folder)
    assert (folder / "scores.csv").read_bytes() == before


def test_of_many_images_the_page_stays_small(tmp_path: Path) -> None:
    page = write_prediction_report(write_prediction(tmp_path / "out", good(100_000)))
    assert page.stat().st_size < 200_000


def test_the_page_can_lie_elsewhere(tmp_path: Path) -> None:
    folder = write_prediction(tmp_path / "out", good(5))
    assert write_prediction_report(folder, tmp_path / "line.html") == tmp_path / "line.html"
    assert not (folder / "report.html").exists()


# --- folders of others ---


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("predict.json", "[]", "predict.json: holds list"),
        ("predict.json", '{"threshold": 1, "format": "csv"}', "predict.json: not written by"),
        ("predict.json", '{"threshold": "1", "format": "csv", "checkpoint": "c", "score": "s"}', "predict.json: not written by"),
        ("predict.json", '{"threshold": 1, "format": "../../etc", "checkpoint": "c", "score": "s"}', "predict.json: not written"),
        ("scores.csv", "file,score\na.png,1\n", "scores.csv: a line was not written"),
        ("scores.csv", "a.png,nan,good,,,,,1\n", "scores.csv: a line was not written"),
        ("scores.csv", "../../a.png,1,good,,,,,1\n", "scores.csv: a line was not written"),
        ("scores.csv", "..,1,defective,,,,,1\n", "scores.csv: a line was not written"),
        ("scores.csv", "a.png,1,perhaps,,,,,1\n", "scores.csv: a line was not written"),
        ("scores.csv", "", "scores.csv: holds no image yet"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, file: str, content: str, reason: str) -> None:
    folder = write_prediction(tmp_path / "out", good(5))
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=reason):
        write_prediction_report(folder)


@pytest.mark.parametrize("file", ["predict.json", "scores.csv", "pictures/000005.png.jpg", "pictures"])
def test_nothing_that_lies_elsewhere_is_shown(tmp_path: Path, file: str) -> None:
    folder = write_prediction(tmp_path / "out", np.array([1.0] * 4 + [20.0]))
    (folder / file).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / file)
    with pytest.raises(UserError, match="is a link to another file"):
        write_prediction_report(folder)


def test_a_folder_that_is_no_prediction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no predict\.json"):
        write_prediction_report(tmp_path)


def test_a_folder_of_an_earlier_version_has_all_but_drift(tmp_path: Path) -> None:
    folder = write_prediction(tmp_path / "out", good(5))
    settings = json.loads((folder / "predict.json").read_text())
    del settings["normal"]
    (folder / "predict.json").write_text(json.dumps(settings))
    assert "Not known: predict.json holds no scores of a calibration" in words(folder)


# --- in Chromium ---


def test_in_a_browser_all_is_drawn_names_are_shown_and_a_phone_has_room(browser, tmp_path: Path) -> None:
    scores = good(450)
    scores[[5, 50]] = 20
    folder = write_prediction(tmp_path / "out", scores, name=EVIL.replace("/", "") + "{}.png")
    browser.get(write_prediction_report(folder).as_uri())
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", "svg[role=img][aria-label]")) == 3
    assert EVIL.replace("/", "") + "51.png" in [title.text for title in browser.find_elements("css selector", "h3")]
    widths = "return [...document.images].map((image) => { image.loading = 'eager'; return image.decode(); }).length"
    assert browser.execute_script(widths) == 2
    dots = "return document.querySelectorAll('#drift svg use').length"
    assert browser.execute_script(dots) >= 4  # a window each, and ticks
    size = {"width": 320, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 320
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
