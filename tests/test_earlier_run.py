"""What the code wrote before the redesign of issue 15 still loads: a checkpoint, a feature cache and a result folder.

tests/golden/earlier_run holds a run of the tiny experiment (commit 1016ebe) without its images, which tiny.make draws again.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import tiny
from utils.predictor import Predictor
from utils.report.page import write_report

EARLIER = tiny.ROOT / "tests/golden/earlier_run"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The configuration of the earlier run, beside everything that the run wrote."""
    tiny.make(tmp_path)
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    return tmp_path / "config.yaml"


def read_scores(folder: Path) -> dict[str, float]:
    with open(folder / "scores.csv", newline="") as file:
        return {row["filename"]: float(row["max"]) for row in csv.DictReader(file)}


def test_its_checkpoint_is_evaluated_to_its_numbers(earlier: Path) -> None:
    before = json.loads((EARLIER / "result/metrics.json").read_text())
    tiny.evaluate(earlier)
    now = json.loads((earlier.parent / "result/metrics.json").read_text())
    assert now == pytest.approx(before, abs=1e-6)
    assert list(now) == list(before)


def test_its_checkpoint_predicts_its_scores_with_its_thresholds(earlier: Path) -> None:
    predictor = Predictor.from_checkpoint(earlier.parent / "checkpoints/ckpt.pth.tar", device="cpu")
    assert predictor.engine.calibration is not None
    for filename, score in read_scores(EARLIER / "result").items():
        assert predictor(earlier.parent / "data" / filename)[0] == pytest.approx(score, rel=1e-4)


def test_its_run_goes_on(earlier: Path) -> None:
    tiny.train(earlier, "trainer.max_epoch=2", "saver.auto_resume=True")
    assert "epoch 2" in tiny.run_tool(earlier, "-e").stdout


def test_its_result_folder_becomes_a_report(earlier: Path) -> None:
    page = write_report(earlier.parent / "result").read_text()
    assert "cup" in page
    assert "tile" in page
