"""An exported network gives the outputs of its checkpoint, holds the metadata a predictor needs, and runs without torch."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime.tools.onnx_model_utils as onnx_tools
import pytest
import torch

from tests.helpers import tiny
from tests.helpers.exported import images_of, run_file
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.calibration import Calibration, Threshold, file_hash, save_calibration
from utils.evaluation.metrics import evaluate_maps, image_scores
from utils.predict.bundle import anomaly
from utils.predict.export import METADATA, ImageToMap, compare, export_checkpoint, image_score
from utils.predict.onnx_engine import OnnxEngine
from utils.predict.predictor import Predictor
from utils.predict.torch_engine import TorchEngine
from utils.process.checkpoint import load_checkpoint, save_checkpoint

EXPORT = tiny.ROOT / "tools" / "export.py"
FORMATS = ("onnx", "torchscript")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")  # torch 2.14 and later

WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(torch=None, torchvision=None)  # as if they were not installed
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a configuration whose network is trained, evaluated and calibrated."""
    path = tiny.make(tmp_path_factory.mktemp("export"))
    tiny.train(path)
    tiny.evaluate(path)
    save_calibration(calibration_of(checkpoint(path.parent)), checkpoint(path.parent))
    return path.parent


def checkpoint(folder: Path) -> Path:
    return folder / "checkpoints/ckpt.pth.tar"


def calibration_of(path: Path) -> Calibration:
    threshold = Threshold(1.5, 20, (0.01, 0.2))
    return Calibration("max", 0.05, path.name, file_hash(path), 1, "held-out images", threshold, {"cup": threshold})


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """A file for each format and type of input."""
    folder = tmp_path_factory.mktemp("exported")
    files = {(f, kind): folder / f"{f}_{kind}.{f}" for f in FORMATS for kind in ("uint8", "float")}
    for (f, kind), path in files.items():
        assert "test images" in export_checkpoint(checkpoint(trained), f, path, kind)
    return files


def test_a_file_whose_batch_another_tool_has_fixed_scores_any_number_of_images(exported, tmp_path) -> None:
    model = onnx.load(exported["onnx", "uint8"])
    onnx_tools.make_dim_param_fixed(model.graph, model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, 2)
    onnx.save(model, tmp_path / "fixed.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    wanted, found = (OnnxEngine(path)(images) for path in (exported["onnx", "uint8"], tmp_path / "fixed.onnx"))
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def run_python(*args: str | Path) -> tiny.Outcome:
    outcome = subprocess.run(
        [sys.executable, *map(str, args)], cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False
    )
    return tiny.Outcome(outcome.returncode, outcome.stdout, outcome.stderr)


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("format", FORMATS)
def test_scores_and_maps_are_those_of_the_checkpoint_in_batches_of_any_size(trained, exported, format, kind):
    _, images = images_of(trained)
    scores, maps = TorchEngine(checkpoint(trained), "cpu")(images)
    inputs = images if kind == "uint8" else images.astype(np.float32) / 255
    for start, stop in ((0, 1), (1, 9), (0, len(images))):
        given_scores, given_maps = run_file(exported[format, kind], inputs[start:stop])
        assert given_scores.shape == (stop - start,)
        assert given_maps.shape == (stop - start, 64, 64)
        assert given_scores.dtype == given_maps.dtype == np.float32
        assert np.abs(given_maps - maps[start:stop]).max() <= 1e-4 * np.ptp(maps)
        assert np.allclose(given_scores, scores[start:stop], rtol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_metrics_are_those_of_evaluation(trained, exported, format):
    records, images = images_of(trained)
    scores, maps = run_file(exported[format, "uint8"], images)
    masks = [
        cv2.imread(str(trained / "data" / r["maskname"]), 0) > 0 if r["maskname"] else np.zeros((64, 64), bool) for r in records
    ]
    labels, clsnames = [record["label"] for record in records], [record["clsname"] for record in records]
    metrics = evaluate_maps(maps, np.array(masks), labels, clsnames, load_config(trained / "config.yaml").evaluator.metrics)
    assert metrics == pytest.approx(json.loads((trained / "result/metrics.json").read_text()), abs=1e-3)
    with open(trained / "result/scores.csv", encoding="utf-8", newline="") as file:
        assert scores == pytest.approx([float(row["max"]) for row in csv.DictReader(file)], rel=1e-5)


def test_an_onnx_file_knows_what_a_predictor_needs(trained, exported):
    engine = OnnxEngine(exported["onnx", "float"])
    reference = TorchEngine(checkpoint(trained), "cpu")
    for name in ("input_size", "color_mode", "resample", "score", "calibration", "epoch"):
        assert getattr(engine, name) == getattr(reference, name)
    assert engine.calibration == calibration_of(checkpoint(trained))
    assert engine.classes == ["cup", "tile"]
    image = trained / "data/cup/test/hole/000.png"
    score, anomaly_map = Predictor.from_checkpoint(exported["onnx", "float"])(image)
    expected_score, expected_map = Predictor(reference)(image)
    assert score == pytest.approx(expected_score, rel=1e-5)
    assert np.abs(anomaly_map - expected_map).max() <= 1e-4 * np.ptp(expected_map)


def test_both_formats_hold_the_same_metadata(exported):
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(exported["onnx", "uint8"]).metadata_props}
    extra = {METADATA: ""}
    torch.jit.load(exported["torchscript", "uint8"], _extra_files=extra)
    assert entries == json.loads(extra[METADATA])
    assert entries["format_version"] == 2
    assert entries["input_size"] == [64, 64]


def test_no_path_of_this_machine_is_in_an_onnx_file(exported):
    assert str(tiny.ROOT).encode() not in exported["onnx", "uint8"].read_bytes()


SCORES = [("mean", None), ("std", None), ("max", None), ("max", (4, 6)), ("max", (20, 24))]
SCORES += [("top", None), ("top", 0.1), ("top", 1e-9), ("top", 1.0)]


@pytest.mark.parametrize("score", SCORES)
def test_the_score_inside_is_that_of_evaluation(score):
    maps = np.random.default_rng(0).random((3, 20, 24), dtype=np.float32) * [[[1]], [[100]], [[1e-3]]] + 5
    maps = maps.astype(np.float32)
    assert image_score(torch.from_numpy(maps), *score).numpy() == pytest.approx(image_scores(maps, *score), rel=1e-5)


@pytest.mark.parametrize("color_mode", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_the_colour_mode_is_inside(trained, color_mode, kind):
    """pixel_mean differs from channel to channel: a wrong order would show."""
    config = load_config(trained / "config.yaml", [f"dataset.image_reader.kwargs.color_mode={color_mode}"])
    engine = TorchEngine(checkpoint(trained), "cpu", config)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    inputs = images if kind == "uint8" else images.astype(np.float32) / 255
    with torch.no_grad():
        scores, maps = (x.numpy() for x in ImageToMap(engine)(torch.from_numpy(inputs)))
    if color_mode == "GRAY":  # an engine takes grey images as three equal channels
        images = np.stack([cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for rgb in images])
    expected_scores, expected_maps = engine(images)
    assert np.abs(maps - expected_maps).max() <= 1e-4 * np.ptp(expected_maps)
    assert np.allclose(scores, expected_scores, rtol=1e-5)


def test_the_tool_writes_beside_the_checkpoint_and_says_how_close_it_is(trained, tmp_path):
    path = tmp_path / "ckpt.pth.tar"
    path.write_bytes(checkpoint(trained).read_bytes())
    outcome = run_python(EXPORT, "--checkpoint", path, "--format", "torchscript")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith(f"{tmp_path / 'ckpt.torchscript'}: differs from PyTorch by ")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ckpt.pth.tar", "ckpt.torchscript"]
    assert "9 test images" in outcome.stdout


def test_without_the_test_set_random_images_are_compared(trained, tmp_path):
    content = load_checkpoint(checkpoint(trained))
    for split in ("train", "test"):
        content["config"]["dataset"][split]["meta_file"] = str(tmp_path / "gone.json")
    content["config"]["dataset"]["image_reader"]["kwargs"]["color_mode"] = "GRAY"
    save_checkpoint(tmp_path / "ckpt.pth.tar", content)
    assert "random images" in export_checkpoint(tmp_path / "ckpt.pth.tar", "torchscript")
    extra = {METADATA: ""}
    torch.jit.load(tmp_path / "ckpt.torchscript", _extra_files=extra)
    assert json.loads(extra[METADATA])["classes"] == []
    assert json.loads(extra[METADATA])["calibration"] is None


def test_no_file_is_left_where_the_comparison_fails(trained, tmp_path):
    content = load_checkpoint(checkpoint(trained))
    content["state_dict"]["module.reconstruction.output_proj.weight"][0, 0] = torch.nan
    save_checkpoint(tmp_path / "ckpt.pth.tar", content)
    out = tmp_path / "out" / "model"
    with pytest.raises(UserError, match=r"model was not written: its outputs differ from PyTorch's"):
        export_checkpoint(tmp_path / "ckpt.pth.tar", "torchscript", out)
    assert not out.parent.exists()


def test_the_comparison_is_of_scores_maps_and_every_batch_size():
    rng = np.random.default_rng(0)
    scores, maps = rng.random(4).astype(np.float32), rng.random((4, 8, 8)).astype(np.float32)
    maps[0, 0, :2] = 0, 2  # their range
    images = np.zeros((4, 8, 8, 3), np.uint8)
    assert compare((scores, maps), lambda x: (scores[: len(x)], maps[: len(x)]), images) == 0
    assert compare((scores, maps), lambda x: (scores[: len(x)] + 0.5, maps[: len(x)]), images) == pytest.approx(0.25)
    assert compare((scores, maps), lambda x: (scores[: len(x)], maps[: len(x)] - 0.5), images) == pytest.approx(0.25)
    assert compare((scores, maps), lambda x: (scores, maps), images) == np.inf


def test_a_checkpoint_without_configuration_takes_it_from_a_file(trained, tmp_path):
    content = load_checkpoint(checkpoint(trained))
    del content["config"]
    save_checkpoint(tmp_path / "ckpt.pth.tar", content)
    with pytest.raises(UserError, match="--config"):
        export_checkpoint(tmp_path / "ckpt.pth.tar", "torchscript")
    config = load_config(trained / "config.yaml")
    assert "9 test images" in export_checkpoint(tmp_path / "ckpt.pth.tar", "torchscript", config=config)


def test_an_unknown_format_is_one_line(trained):
    outcome = run_python(EXPORT, "--checkpoint", checkpoint(trained), "--format", "tflite")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr == "error: --format 'tflite' is unknown: use one of onnx, torchscript\n"


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "ckpt.pth.tar").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"ckpt.pth.tar: damaged or not a checkpoint"):
        export_checkpoint(tmp_path / "ckpt.pth.tar", "onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(trained, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=f"pip install {package}$"):
        export_checkpoint(checkpoint(trained), "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_is_predicted_without_torch(trained, exported, tmp_path):
    arguments = ("--checkpoint", exported["onnx", "uint8"], trained / "data/cup/test", "--out", tmp_path)
    outcome = run_python("-c", WITHOUT_TORCH, tiny.ROOT / "tools" / "predict.py", *arguments)
    assert outcome.code == 0, outcome.stderr
    reference = Predictor.from_checkpoint(checkpoint(trained), "cpu")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for row in rows:
        score, _ = reference(trained / "data/cup/test" / row["file"])
        assert float(row["score"]) == pytest.approx(score, rel=1e-5)
        assert row["decision"] == ("defective" if score > 1.5 else "good")  # the threshold is in the file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", "[64"),
        ("input_size", "[64]"),
        ("input_size", "[64, 100000]"),
        ("input_size", "[64, 1e999]"),
        ("input_size", "[true, true]"),
        ("input_size", "[" * 100_000),
        ("color_mode", '"HSV"'),
        ("color_mode", "[]"),
        ("resample", '"cubic"'),
        ("resample", "{}"),
        ("score", '"median"'),
        ("score", '"' + "m" * 5000 + '"'),
        ("classes", '{"cup": 1}'),
        ("classes", "[1]"),
        ("epoch", '"one"'),
        ("epoch", "9" * 5000),
        ("calibration", "{}"),
        ("calibration", '{"score": "max"}'),
        ("calibration", "NaN"),
        ("calibration", None),
    ],
)
def test_metadata_of_another_kind_are_one_line(exported, tmp_path, key, value):
    model = onnx.load(exported["onnx", "uint8"])
    (entry,) = [entry for entry in model.metadata_props if entry.key == key]
    if value is None:
        model.metadata_props.remove(entry)
    else:
        entry.value = value
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(UserError, match=rf"changed\.onnx: its metadata '{key}' cannot be used") as caught:
        OnnxEngine(tmp_path / "changed.onnx")
    assert len(str(caught.value)) < 300


def test_metadata_that_do_not_suit_the_network_are_one_line(exported, tmp_path):
    model = onnx.load(exported["onnx", "uint8"])
    for entry in model.metadata_props:
        entry.value = {"input_size": "[32, 64]"}.get(entry.key, entry.value)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(UserError, match="does not turn an image of 32 x 64 pixels into score and map"):
        OnnxEngine(tmp_path / "changed.onnx")


def test_metadata_that_are_no_text_are_one_line(exported, tmp_path):
    (tmp_path / "changed.onnx").write_bytes(exported["onnx", "uint8"].read_bytes().replace(b'"bilinear"', b'"bilin\xfbar"'))
    with pytest.raises(UserError, match=r"changed\.onnx: damaged"):
        OnnxEngine(tmp_path / "changed.onnx")
    with pytest.raises(anomaly.ModelError, match=r"changed\.onnx: missing, damaged"):
        anomaly.Predictor(tmp_path / "changed.onnx")


def test_a_file_that_is_no_export_of_ours_is_one_line(exported, tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        OnnxEngine(tmp_path / "gone.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported["onnx", "uint8"].read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        OnnxEngine(damaged)
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(exported["onnx", "uint8"])
    versions = [entry for entry in model.metadata_props if entry.key == "format_version"]
    versions[0].value = "99"
    onnx.save(model, foreign)
    with pytest.raises(UserError, match="of format 99"):
        OnnxEngine(foreign)
    model.metadata_props.remove(versions[0])
    onnx.save(model, foreign)
    with pytest.raises(UserError, match=r"not written by tools/export.py"):
        OnnxEngine(foreign)
