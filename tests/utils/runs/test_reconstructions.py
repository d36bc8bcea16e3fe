"""What surrounds a reconstruction works for each of them: resume, two processes, calibration, prediction, report, export."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.exported import images_of
from tests.helpers.started_runs import result, start
from utils.config import load_config
from utils.predict.export import export_checkpoint
from utils.predict.predictor import Predictor
from utils.predict.torch_engine import TorchEngine
from utils.runs.calibrate import calibrate_checkpoint

KINDS = tiny.RECONSTRUCTIONS
WITHOUT_NOISE = {
    "UniAD": ("net.reconstruction.kwargs.dropout=0.0", "net.reconstruction.kwargs.feature_jitter=False", "trainer.max_epoch=2"),
    "Dinomaly": ("net.reconstruction.kwargs.dropout=0.0",),
}
RESUME = "saver.auto_resume=True"
HOLDOUT = "dataset.holdout=0.4"

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")  # torch 2.14 and later


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(kind: str, tmp_path_factory) -> Path:
    """The configuration of a run that kept images aside, was evaluated and calibrated."""
    path = tiny.make(tmp_path_factory.mktemp(kind))
    tiny.train(path, *KINDS[kind], HOLDOUT)
    tiny.evaluate(path, *KINDS[kind], HOLDOUT)
    calibrate_checkpoint(load_config(path, [*KINDS[kind], HOLDOUT]), checkpoint(path), 0.2)
    return path


def checkpoint(path: Path) -> Path:
    return path.parent / "checkpoints/ckpt.pth.tar"


def test_evaluation_writes_a_result_folder_with_a_report(trained: Path) -> None:
    written = {file.name for file in (trained.parent / "result").iterdir()}
    assert written >= {"metrics.json", "table.txt", "scores.csv", "intervals.json", "run.json", "report.html"}
    assert "mean_pixel_auc" in json.loads((trained.parent / "result/metrics.json").read_text())


def test_prediction_gives_the_scores_of_evaluation_and_the_calibrations_threshold(trained: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint(trained))
    assert predictor.engine.calibration is not None
    with open(trained.parent / "result/scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores, _ = predictor([trained.parent / "data" / row["filename"] for row in rows], batch_size=4)
    assert scores == pytest.approx([float(row["max"]) for row in rows], rel=1e-4)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_an_exported_file_gives_the_same_scores_maps_and_decisions(trained: Path, tmp_path: Path, format: str) -> None:
    export_checkpoint(checkpoint(trained), format, out := tmp_path / f"file.{format}")  # compares maps and scores to 1e-4
    if format == "onnx":
        ours, file = TorchEngine(checkpoint(trained), "cpu"), Predictor.from_checkpoint(out).engine
        images = np.stack([Predictor(ours).prepare(image).images[0] for image in images_of(trained.parent)[1]])
        limit = file.calibration.of().threshold
        assert limit == ours.calibration.of().threshold
        assert np.array_equal(file(images)[0] > limit, ours(images)[0] > limit)


def test_the_same_command_again_has_nothing_left_to_train(trained: Path, kind: str, log_text) -> None:
    before = checkpoint(trained).read_bytes()
    tiny.train(trained, *KINDS[kind], HOLDOUT, RESUME)
    assert "nothing left to train" in log_text()
    assert checkpoint(trained).read_bytes() == before


def test_a_run_that_was_killed_ends_as_one_that_was_not(kind: str, tmp_path: Path) -> None:
    whole, path = (tiny.make(tmp_path / name) for name in ("whole", "killed"))
    options = (*KINDS[kind], RESUME, "trainer.max_epoch=3", "trainer.val_freq_epoch=1", "trainer.print_freq_step=1")
    tiny.train(whole, *options)
    with start(path, *options) as (run,):
        run.wait_for("feature cache: 9 test images")  # before the first step
        run.kill()
        run.code()
    tiny.train(path, *options)
    assert_same(result(path), result(whole))


def test_one_model_a_class_is_trained_and_evaluated_below_the_class_s_folder(kind: str, tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    for mode in ((), ("--evaluate",)):
        outcome = tiny.run_tool(path, *mode, *KINDS[kind], "dataset.separate=True")
        assert outcome.code == 0, outcome.stderr
    assert {"cup_pixel_auc", "tile_pixel_auc"} <= json.loads((tmp_path / "result/metrics.json").read_text()).keys()
    for clsname in ("cup", "tile"):
        assert (tmp_path / clsname / "checkpoints/ckpt.pth.tar").is_file()


def test_two_processes_fill_or_train_what_one_does(kind: str, tmp_path: Path) -> None:
    one, two = (tiny.make(tmp_path / name) for name in ("one", "two"))
    options = (*KINDS[kind], "dataset.feature_cache.mode=off", *WITHOUT_NOISE.get(kind, ()))
    tiny.train(one, *options, "dataset.batch_size=2")
    with start(two, *options, "dataset.batch_size=1", processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
    states = [result(path)["state_dict"] for path in (one, two)]
    for name, tensor in states[0].items():
        close = torch.isclose(states[1][name].double(), tensor.double(), rtol=1e-3, atol=2e-3 if kind == "Dinomaly" else 1e-4)
        # StableAdamW turns a rounding of a tiny gradient into a step; each process mines hard positions in its own batch
        assert close.double().mean() > (0.99 if kind == "Dinomaly" else 0.99999), name
