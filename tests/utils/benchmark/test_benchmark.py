"""The benchmark measures what a configuration runs, beside a plain reference that computes the same."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.losses import Criterion
from tests.helpers import tiny
from utils.benchmark.metrics import measure_metrics
from utils.benchmark.plain_dinomaly import plain_criterion
from utils.benchmark.report import format_report
from utils.benchmark.speed import (
    PRECISIONS,
    REFERENCE,
    TASKS,
    benchmark_config,
    build_networks,
    build_run,
    count_multiply_adds,
    map_difference,
    measure_speed,
    random_images,
)
from utils.config import load_config
from utils.errors import UserError

BENCHMARK = tiny.ROOT / "tools" / "benchmark.py"
EXPERIMENTS = ("demo", "MVTec-AD", "CIFAR-10/01234", "custom")
RECONSTRUCTION = "net.reconstruction.kwargs"
VARIANTS = (
    [f"{RECONSTRUCTION}.pos_embed_type=sine", f"{RECONSTRUCTION}.activation=gelu"],
    [
        f"{RECONSTRUCTION}.normalize_before=True",
        f"{RECONSTRUCTION}.num_encoder_layers=2",
        f"{RECONSTRUCTION}.num_decoder_layers=2",
    ],
    [f"{RECONSTRUCTION}.neighbor_mask={{neighbor_size: [3, 5], mask: [True, False, True]}}", "dataset.input_size=[64, 96]"],
    [f"{RECONSTRUCTION}.neighbor_mask=False", f"{RECONSTRUCTION}.feature_jitter=False"],
    ["net.backbone.type=models.backbones.efficientnet_b0", "net.backbone.kwargs.outlayers=[4, 1]"],
    ["net.backbone.type=models.backbones.resnet18"],
)


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """The tiny configuration, without its data."""
    path = tmp_path / "config.yaml"
    path.write_text(tiny.CONFIG)
    return path


def load(path: Path, *overrides: str) -> dict[str, Any]:
    return benchmark_config(load_config(path, overrides))


# ---- the plain reference computes the same


def assert_same_outputs(config: dict[str, Any], names: Sequence[str] = ("feature_align", "feature_rec", "pred")) -> None:
    torch.manual_seed(0)
    ours, plain = build_networks(config["net"])
    inputs = {"image": random_images(config, 1)}
    with torch.no_grad():
        outputs, expected = ours.eval()(inputs), plain.eval()(inputs)
    for name in names:
        extent = (expected[name].max() - expected[name].min()).item()
        assert extent > 0
        torch.testing.assert_close(outputs[name], expected[name], rtol=0, atol=1e-4 * extent, msg=name)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_plain_reference_gives_the_features_and_maps_of_each_experiment(experiment: str) -> None:
    # on a smaller image, for speed; nothing is read of data or weights, which a fresh clone lacks
    assert_same_outputs(load(tiny.ROOT / "experiments" / experiment / "config.yaml", "dataset.input_size=[128, 128]"))


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda overrides: overrides[0].rsplit(".", 1)[-1].split("=")[0])
def test_the_plain_reference_follows_the_configuration(config_path: Path, overrides: list[str]) -> None:
    assert_same_outputs(load(config_path, *overrides))


def test_the_plain_dinomaly_gives_the_same_map_and_first_loss(config_path: Path) -> None:
    config = load(config_path, *tiny.DINOMALY, f"{RECONSTRUCTION}.dropout=0")
    assert_same_outputs(config, names=("pred",))
    inputs = {"image": random_images(config, 2)}
    ours, plain = (network.train() for network in build_networks(config["net"]))
    torch.testing.assert_close(plain_criterion(plain(inputs)), Criterion(config["criterion"])(ours(inputs)))


def test_a_step_of_the_plain_dinomaly_runs_the_backbone(config_path: Path) -> None:
    config = load(config_path, *tiny.DINOMALY)
    reference, ours = (count_multiply_adds(build_run(config, "train_step", side)) for side in (REFERENCE, "float32"))
    assert 0 < 1.2 * ours < reference


@pytest.mark.parametrize("normalize_before", [True, False])
def test_the_plain_reference_trains_alike(config_path: Path, normalize_before: bool) -> None:
    overrides = (f"{RECONSTRUCTION}.dropout=0", f"{RECONSTRUCTION}.normalize_before={normalize_before}")
    config = load(config_path, *overrides)
    ours, plain = (network.train() for network in build_networks(config["net"]))
    image, criterion = torch.randn(1, 3, 64, 64), Criterion(config["criterion"])  # one image: jitter draws in the same order
    for network in (ours, plain):
        torch.manual_seed(0)
        criterion(network({"image": image})).backward()
    expected = dict(plain.reconstruction.named_parameters())
    for name, parameter in ours.reconstruction.named_parameters():
        want = expected[name].grad
        torch.testing.assert_close(parameter.grad, want, rtol=1e-3, atol=1e-5 * want.abs().max().item(), msg=name)
    assert all(parameter.grad is None for parameter in plain.backbone.parameters())


def test_bfloat16_changes_a_map_by_little(config_path: Path) -> None:
    differences = [map_difference(load(config_path), dtype) for dtype in PRECISIONS.values()]
    assert 0 <= differences[0] < 1e-4 < differences[1] < 0.1


# ---- what is counted


def test_multiply_adds_are_those_of_the_layers() -> None:
    config = load(tiny.ROOT / "experiments/MVTec-AD/config.yaml")
    d, hidden, tokens, batch = 256, 1024, 196, TASKS["train_step"]
    attention, feed_forward, scores = 4 * d * d * tokens, 2 * d * hidden * tokens, 2 * tokens * tokens * d
    forward = 4 * (3 * (attention + scores) + 2 * feed_forward) + 2 * 272 * d * tokens
    forward -= 4 * d * d * tokens * (1 - 1 / batch)  # the learned queries are projected once a batch
    without = 272 * d * tokens  # the input of the first layer needs no gradient
    counted = count_multiply_adds(build_run(config, "train_step", "float32")) / batch
    assert counted == pytest.approx(3 * forward - without, rel=0.001)
    assert count_multiply_adds(build_run(config, "inference_batch_1", "float32")) == pytest.approx(2.6e9, rel=0.02)


def test_dropout_adds_no_multiply_adds(config_path: Path) -> None:
    configs = (load(config_path, f"{RECONSTRUCTION}.dropout={rate}") for rate in (0.1, 0))
    with_dropout, without = (count_multiply_adds(build_run(config, "train_step", "float32")) for config in configs)
    assert with_dropout == without


@pytest.mark.parametrize("task", TASKS)
def test_the_reference_computes_what_the_model_saves(config_path: Path, task: str) -> None:
    """No block past the last one needed, and in training none at all."""
    config = load(config_path, f"{RECONSTRUCTION}.normalize_before=True")
    reference, ours = (count_multiply_adds(build_run(config, task, side)) for side in (REFERENCE, "float32"))
    assert 0 < 1.2 * ours < reference
    assert count_multiply_adds(build_run(config, task, "bfloat16")) == ours


# ---- the report


def test_the_report_has_every_number_and_is_json(config_path: Path) -> None:
    report = {"config": str(config_path), **measure_speed(load(config_path), tasks=("train_step",), rounds=1)}
    report["metrics"] = measure_metrics({"a": {"test": {"good": 2, "crack": 3}}, "b": {"test": {"good": 2, "hole": 2}}})
    text = format_report(report)

    report = json.loads(json.dumps(report, allow_nan=False))
    assert (
        set(report["train_step"]) == set(report["machine"]["gflops"]) == set(report["map_difference"]) == {"float32", "bfloat16"}
    )
    assert set(report["multiply_adds"]) == {"train_step", "feature_extraction", "inference", "inference_batch_1"}
    for row in report["train_step"].values():
        numbers = ("images_per_s", "reference_images_per_s", "ratio", "of_limit", "peak_mb", "reference_peak_mb")
        assert all(row[name] > 0 for name in numbers)
        assert row["ratio"] == pytest.approx(row["images_per_s"] / row["reference_images_per_s"])
        limit = report["machine"]["gflops"]["float32"] * 1e9 / 2 / report["multiply_adds"]["train_step"]
    row = report["train_step"]["float32"]
    assert row["of_limit"] == pytest.approx(row["images_per_s"] / limit)

    metrics = report["metrics"]
    assert metrics["pixels"] == 9 * 224 * 224
    assert metrics["classes"] == 2
    assert metrics["reference_seconds"] == pytest.approx(metrics["sklearn_seconds"] + metrics["loop_seconds"])
    assert metrics["ratio"] == pytest.approx(metrics["reference_seconds"] / metrics["seconds"])
    assert min(metrics["seconds"], metrics["sklearn_seconds"], metrics["loop_seconds"]) > 0
    assert metrics["peak_mb"] * 1e6 > metrics["pixels"] * 5  # maps and masks
    assert metrics["difference"] < 1e-9
    for words in (
        str(config_path),
        "train step, batch 8",
        f"{row['ratio']:.2f}x",
        "all seven metrics",
        "0.5 M pixels",
    ):
        assert words in text


# ---- what cannot be measured


def test_the_tool_says_in_one_line_what_is_wrong_with_a_configuration(config_path: Path) -> None:
    arguments = tiny.command(config_path, "net.backbone.kwargs.outlayers=[9]", script=BENCHMARK)
    outcome = subprocess.run(arguments, cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"error: {config_path}: ")
    assert "no layer 9" in line


def test_networks_that_the_reference_does_not_cover_are_refused(config_path: Path) -> None:
    with pytest.raises(UserError, match=r"net\.backbone must be frozen"):
        load(config_path, "frozen_layers=[]")
    with pytest.raises(UserError, match=r"net\.neck\.kwargs\.standardise has no plain reference"):
        load(config_path, "net.neck.kwargs.standardise=True")
    config = load_config(config_path)
    config.net[0].type = "models.backbones.timm"
    with pytest.raises(UserError, match=r"models\.backbones\.timm has no plain reference"):
        benchmark_config(config)
    with pytest.raises(UserError, match=r"net\.reconstruction\.type must be models\.reconstructions\.UniAD"):
        benchmark_config(load_config(tiny.ROOT / "experiments/demo/train_vis_decoder/config.yaml", class_name="nut"))
