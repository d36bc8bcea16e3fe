"""On a GPU: the published outputs, whole runs, and the CPU's numbers. Other tests see no GPU, see tests/conftest.py."""

import csv
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import discriminator, tiny, vis_runs
from tests.helpers.comparing import assert_same
from tests.helpers.golden_cases import CASES, GOLDEN, golden_input, golden_weights
from tests.helpers.started_runs import curve, result
from utils.config import load_config
from utils.predict.predictor import Predictor
from utils.process.distributed import Process

FORWARD_CASES = [name for name in CASES if name == "mvtec" or name.startswith("small")]
GPU = Process(device=torch.device("cuda", 0))


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[Callable]:
    """on_gpu(function, *args): what it returns in a process that sees the GPUs, as do those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", os.environ["GPUS_TO_TEST"])
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            if not pool.submit(torch.cuda.is_available).result():
                pytest.skip("needs a GPU")
            patch.undo()
            yield lambda function, *args: pool.submit(function, *args).result()


# ---- the published outputs


@contextmanager
def exact() -> Iterator[None]:
    """Products in float32: by default cuDNN's convolutions round their factors to TF32's ten bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def reconstruct(name: str) -> tuple[np.ndarray, np.ndarray]:
    from tests.test_uniad import build

    model = golden_weights(build(CASES[name]["config"])).eval().cuda()
    with exact(), torch.no_grad():
        outputs = model({"feature_align": golden_input(CASES[name]["input_seed"], CASES[name]["input_shape"]).cuda()})
    return outputs["feature_rec"].cpu().numpy(), outputs["pred"].cpu().numpy()


@pytest.mark.parametrize("name", FORWARD_CASES)
def test_reconstructions_are_the_published_ones(on_gpu: Callable, name: str) -> None:
    feature_rec, pred = on_gpu(reconstruct, name)
    np.testing.assert_allclose(feature_rec, GOLDEN[f"{name}/feature_rec"], rtol=0, atol=1e-5)
    expected = GOLDEN[f"{name}/pred"]
    np.testing.assert_allclose(pred[:, 0, ::4, ::4], expected[:, 0], rtol=0, atol=1e-5 * expected.max())


def extract(name: str) -> list[np.ndarray]:
    from models.backbones import BACKBONES

    backbone = golden_weights(BACKBONES[name](pretrained=False, outlayers=CASES[name]["outlayers"])).eval().cuda()
    with exact(), torch.no_grad():
        features = backbone({"image": golden_input(CASES[name]["input_seed"], CASES[name]["input_shape"]).cuda()})["features"]
    return [feature.cpu().numpy() for feature in features]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b4"])
def test_features_are_the_published_ones(on_gpu: Callable, name: str) -> None:
    for layer, feature in zip(CASES[name]["outlayers"], on_gpu(extract, name), strict=True):
        np.testing.assert_allclose(feature, GOLDEN[f"{name}/layer{layer}"], rtol=0, atol=1e-5)


def six_steps() -> list[float]:
    from tests.test_uniad import build

    from models.losses import FeatureMSELoss
    from utils.training.optimizer import build_optimizer

    case = CASES["train"]
    model = golden_weights(build(case["config"])).train().cuda()
    kwargs = {key: value for key, value in case["optimizer"].items() if key != "type"}
    optimizer, losses = build_optimizer(model, {"type": case["optimizer"]["type"], "kwargs": kwargs}), []
    for seed in case["input_seeds"]:
        loss = FeatureMSELoss()(model({"feature_align": golden_input(seed, case["input_shape"]).cuda()}))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip_max_norm"])
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_six_training_steps_are_the_published_ones(on_gpu: Callable) -> None:
    np.testing.assert_allclose(on_gpu(six_steps), CASES["train"]["losses"], rtol=1e-5)


# ---- whole runs


def train(path: Path, *overrides: str) -> None:
    from utils.runs.train import train

    try:
        train(load_config(path, overrides), GPU)
    finally:
        torch.use_deterministic_algorithms(False)


def scores(path: Path) -> dict[str, float]:
    """From an evaluation: std of each image's map by its file."""
    with open(path.parent / "result/scores.csv", newline="") as file:
        return {row["filename"]: float(row["std"]) for row in csv.DictReader(file)}


def assert_near(one: dict[Any, float], other: dict[Any, float], tolerance: float) -> None:
    """Each within `tolerance` of the largest."""
    assert one.keys() == other.keys()
    largest = max(map(abs, other.values()))
    assert max(abs(one[name] - other[name]) for name in one) <= tolerance * largest, (one, other)


def assert_ended_well(outcome: tiny.Outcome) -> None:
    assert outcome.code == 0, outcome.stdout + outcome.stderr


MAKE = {"published": tiny.make, "plus": discriminator.make}


@pytest.fixture(scope="module", params=MAKE)
def trained(request, tmp_path_factory, on_gpu: Callable) -> Path:
    """The configuration of a network that was trained and evaluated by the tool, on the GPU."""
    path = MAKE[request.param](tmp_path_factory.mktemp("gpu"))
    outcome = on_gpu(tiny.run_tool, path, "trainer.max_epoch=3")
    assert_ended_well(outcome)
    assert "1 process on a GPU" in outcome.stdout + outcome.stderr
    assert_ended_well(on_gpu(tiny.run_tool, path, "-e"))
    return path


def test_the_cpu_gives_the_scores_of_the_gpu(trained: Path) -> None:
    found = scores(trained)
    tiny.evaluate(trained)
    assert_near(found, scores(trained), 5e-3)


def predict(checkpoint: Path, images: list[Path]) -> list[float]:
    predictor = Predictor.from_checkpoint(checkpoint)
    assert predictor.engine.device.type == "cuda"
    return predictor(images)[0]


def test_prediction_gives_the_scores_of_the_cpu_s(trained: Path, on_gpu: Callable) -> None:
    checkpoint = trained.parent / "checkpoints/ckpt.pth.tar"
    images = sorted(trained.parent.glob("data/*/test/*/*.png"))
    on_cpu = Predictor.from_checkpoint(checkpoint)(images)[0]
    given = on_gpu(predict, checkpoint, images)
    assert_near(dict(zip(images, given, strict=True)), dict(zip(images, on_cpu, strict=True)), 5e-3)


@pytest.mark.parametrize("hflip", [False, True], ids=["cached", "from images"])
def test_a_run_that_is_gone_on_with_ends_as_one_that_was_not(tmp_path: Path, on_gpu: Callable, hflip: bool) -> None:
    contents = []
    for name, epochs in (("whole", [4]), ("parts", [1, 4])):
        (tmp_path / name).mkdir()
        path = tiny.make(tmp_path / name)
        for number in epochs:
            on_gpu(train, path, f"trainer.max_epoch={number}", "saver.auto_resume=True", f"dataset.train.hflip={hflip}")
        contents.append(result(path))
    assert contents[0]["random_states"][0]["cuda"]
    assert_same(*contents)


def test_a_gpu_s_checkpoint_is_gone_on_with_on_a_cpu(tmp_path: Path, on_gpu: Callable, log_text: Callable) -> None:
    path = tiny.make(tmp_path)
    on_gpu(train, path)
    tiny.train(path, "trainer.max_epoch=2", "saver.auto_resume=True")
    assert "epoch 2/2" in log_text()
    assert result(path)["epoch"] == 2


@pytest.mark.parametrize("override", ["trainer.precision=bfloat16", "trainer.compile=True"])
def test_bfloat16_and_compilation_train_as_float32_does(tmp_path: Path, on_gpu: Callable, override: str) -> None:
    losses = []
    for name, overrides in (("plain", []), ("other", [override])):
        (tmp_path / name).mkdir()
        path = tiny.make(tmp_path / name)
        without_noise = ["net.reconstruction.kwargs.dropout=0", "net.reconstruction.kwargs.feature_jitter=False"]
        on_gpu(train, path, "trainer.max_epoch=3", "reproduce=False", *without_noise, *overrides)
        losses.append([epoch["loss"] for epoch in result(path)["history"]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    if "bfloat16" in override:
        assert losses[1] != losses[0]


@pytest.mark.parametrize("noise", ["", "net.reconstruction.kwargs.dropout=0"], ids=["noise", "no noise"])
@pytest.mark.parametrize("name", ["UniAD", "Dinomaly"])
def test_a_recorded_step_has_the_losses_of_the_plain_one(tmp_path: Path, on_gpu: Callable, name: str, noise: str) -> None:
    """20 steps, with a smaller last batch in each epoch."""
    overrides = [*tiny.RECONSTRUCTIONS[name], "trainer.max_epoch=null", "trainer.max_step=20", "trainer.tb_freq_step=1"]
    overrides += [noise] if noise else []
    overrides += ["net.reconstruction.kwargs.feature_jitter=False"] if noise and name == "UniAD" else []
    losses = []
    for recorded in (True, False):
        path = tiny.make(tmp_path / str(recorded))
        outcome = on_gpu(tiny.run_tool, path, f"trainer.cuda_graph={recorded}", *overrides)
        assert_ended_well(outcome)
        assert ("a training step is one CUDA graph" in outcome.stdout) == recorded
        assert "features are on the GPU" in outcome.stdout
        losses.append([loss for _, loss in curve(path, "loss_train")])
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def train_without_waiting(path: Path, *overrides: str) -> None:
    """Raises RuntimeError where a step waits for the GPU. The first of each kind may: it records, and libraries begin."""
    from utils.training.trainer import Trainer

    plain_step, seen = Trainer.train_step, set()

    def step(trainer: Trainer, batch: dict[str, Any]) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error" if len(batch["filename"]) in seen else "default")
        seen.add(len(batch["filename"]))
        try:
            return plain_step(trainer, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        train(path, *overrides)
    assert seen == {4, 2}


@pytest.mark.parametrize("name", ["UniAD", "Dinomaly", "plus"])
@pytest.mark.parametrize("recorded", [True, False])
def test_no_step_waits_for_the_gpu(tmp_path: Path, on_gpu: Callable, name: str, recorded: bool) -> None:
    path = (discriminator if name == "plus" else tiny).make(tmp_path)
    on_gpu(train_without_waiting, path, f"trainer.cuda_graph={recorded}", *tiny.RECONSTRUCTIONS.get(name, ()))


# ---- the other tools


def run(*command: object) -> tiny.Outcome:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False
    )
    return tiny.Outcome(done.returncode, done.stdout, done.stderr)


def test_a_memory_is_the_cpu_s(tmp_path: Path, on_gpu: Callable) -> None:
    path = tiny.make(tmp_path)
    tool = (tiny.TRAIN_VAL, "--config", path, "--overwrite", tiny.MEMORY, "dataset.feature_cache.mode=off")
    outcome = on_gpu(run, *tool)
    assert_ended_well(outcome)
    assert "1 process on a GPU" in outcome.stdout + outcome.stderr
    found = scores(path)
    assert_ended_well(run(*tool))
    assert_near(found, scores(path), 5e-3)


def test_a_vis_decoder_trains_and_draws(tmp_path: Path, on_gpu: Callable) -> None:
    path = vis_runs.make(tmp_path)
    outcome = on_gpu(run, vis_runs.TOOL, "--config", path, "--class_name", "cup")
    assert_ended_well(outcome)
    assert "1 process on a GPU" in outcome.stdout + outcome.stderr
    assert list((tmp_path / "cup/vis").rglob("*.jpg")), outcome


def speed(path: Path) -> dict[str, Any]:
    from utils.benchmark.speed import benchmark_config, measure_speed

    return measure_speed(benchmark_config(load_config(path)), ("train_step", "inference"), rounds=1)


def test_the_benchmark_measures_the_gpu(tmp_path: Path, on_gpu: Callable) -> None:
    report = on_gpu(speed, tiny.make(tmp_path))
    assert report["machine"]["device"] != "cpu"
    assert report["map_difference"]["float32"] < 5e-3
    for task in ("train_step", "inference"):
        assert report[task]["float32"]["ratio"] > 0
        assert report[task]["float32"]["peak_mb"] > 0
