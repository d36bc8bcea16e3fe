"""A region of interest: what is outside plays no part, in training, evaluation, calibration, prediction and exported files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from datasets.roi import Roi
from tests.helpers import tiny
from tests.helpers.services import Service
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.decisions import Rule
from utils.evaluation.metrics import evaluate_maps
from utils.predict.bundle import anomaly
from utils.predict.export import export_bundle, export_checkpoint
from utils.predict.predictor import Predictor
from utils.process.checkpoint import load_checkpoint, save_checkpoint
from utils.report.result_folder import read_result
from utils.runs.calibrate import calibrate_checkpoint

WIDTH = 40  # columns of the images' 64 that are inspected
LEFT = [[[0, 0], [WIDTH / 64, 0], [WIDTH / 64, 1], [0, 1]]]
SIX = "evaluator.metrics.auc=[{name: mean}, {name: std}, {name: top, kwargs: {share: 0.05}}, {name: max}, {name: pixel}]"
METRICS = {"auc": [{"name": n} for n in ("mean", "std", "max", "pixel")] + [{"name": "top", "kwargs": {"share": 0.05}}]}


def make(folder: Path) -> Path:
    """The tiny data set with a mask of its left part for all classes; returns the configuration."""
    path = tiny.make(folder)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :WIDTH] = 255
    tiny.save_image(folder / "roi.png", mask)
    return path


def spoil(folder: Path) -> None:
    """Other content outside of the region, in every image."""
    rng = np.random.default_rng(1)
    for file in sorted((folder / "data").glob("*/t*/*/*.png")):
        image = cv2.imread(str(file))
        image[:, WIDTH:] = rng.integers(0, 256, image[:, WIDTH:].shape)
        tiny.save_image(file, image)


@pytest.mark.parametrize("overrides", tiny.RECONSTRUCTIONS.values(), ids=tiny.RECONSTRUCTIONS)
def test_what_is_outside_changes_nothing(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    runs = {}
    for name in ("as it is", "spoilt"):
        path = make(tmp_path / name)
        if name == "spoilt":
            spoil(path.parent)
        tiny.train(path, *overrides, "dataset.roi=roi.png")
        tiny.evaluate(path, *overrides, "dataset.roi=roi.png")
        (path.parent / "roi.png").unlink()  # the checkpoint holds it
        checkpoint = path.parent / "checkpoints/ckpt.pth.tar"
        files = sorted((path.parent / "data").glob("*/test/*/*.png"))
        state = load_checkpoint(checkpoint)["state_dict"]
        result = read_result(path.parent / "result")
        runs[name] = (state, result.scores.scores, Predictor.from_checkpoint(checkpoint)(files), result.scores.filenames)
    (one, scores, (predicted, maps), _), (other, spoilt, (again, others), _) = runs.values()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    for key, values in scores.items():
        np.testing.assert_array_equal(values, spoilt[key])
    assert predicted == again
    np.testing.assert_array_equal(maps, others)
    outside = np.array(maps)[:, :, WIDTH + 1 :]
    assert not outside.any()
    assert np.array(maps)[:, 10:54, 10 : WIDTH - 1].all()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    path = make(tmp_path_factory.mktemp("roi"))
    tiny.train(path, SIX, "dataset.roi=roi.png", "dataset.holdout=0.4")
    tiny.evaluate(path, SIX, "dataset.roi=roi.png")
    return path


def test_metrics_are_those_of_the_inspected_part_alone(evaluated: Path) -> None:
    result = read_result(evaluated.parent / "result")
    files = [evaluated.parent / "data" / name for name in result.scores.filenames]
    _, maps = Predictor.from_checkpoint(evaluated.parent / "checkpoints/ckpt.pth.tar")(files)
    masks = []
    for file in files:
        mask = file.parents[2] / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        masks.append(cv2.imread(str(mask), 0) > 0 if mask.exists() else np.zeros((64, 64), bool))
    part = np.array(maps)[:, :, :WIDTH], np.array(masks)[:, :, :WIDTH]
    wanted = evaluate_maps(*part, result.scores.labels, result.scores.clsnames, METRICS)
    found = json.loads((evaluated.parent / "result/metrics.json").read_text())
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-6)


REGIONS = {"cup": LEFT, "tile": [[[0, 0], [1, 0], [1, 0.5], [0, 0.5]]]}


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory) -> Path:
    """A calibrated checkpoint whose classes have regions of their own; the configuration's path."""
    path = tiny.make(tmp_path_factory.mktemp("classes"))
    (path.parent / "roi.json").write_text(json.dumps(REGIONS))
    path.write_text(path.read_text().replace("  batch_size: 4", "  batch_size: 4\n  roi: roi.json\n  holdout: 0.4"))
    tiny.train(path)
    calibrate_checkpoint(load_config(path), path.parent / "checkpoints/ckpt.pth.tar", 0.5, min_area=0.001)
    tiny.evaluate(path)
    return path


@pytest.mark.parametrize("name", ["cup", "tile"])
def test_an_exported_file_and_a_bundle_decide_as_the_checkpoint_does(of_classes: Path, tmp_path: Path, name: str) -> None:
    checkpoint = of_classes.parent / "checkpoints/ckpt.pth.tar"
    export_checkpoint(checkpoint, "onnx", tmp_path / "model.onnx", class_name=name)
    export_bundle(checkpoint, tmp_path / "line", class_name=name)
    engine = Predictor.from_checkpoint(checkpoint).engine
    here = Predictor(engine, name)
    rule, inside = Rule.of(engine.calibration, name), engine.roi.inside(name, engine.input_size)
    there = anomaly.Predictor(tmp_path / "line/model.onnx", name)
    files = sorted((of_classes.parent / f"data/{name}/test").glob("*/*.png"))
    exported = Predictor.from_checkpoint(tmp_path / "model.onnx")
    found = 0
    for file, score, anomaly_map in zip(files, *here(files), strict=True):
        wanted = rule.decide(score, anomaly_map, float(inside.mean()))
        other = rule.decide(*exported(file), float(inside.mean()))
        result = there(file)
        assert wanted.verdict == other.verdict == result.decision
        for regions in (other.regions, result.regions):
            assert [(r.x, r.y, r.area) for r in regions] == [(r.x, r.y, r.area) for r in wanted.regions]
            assert [r.share for r in regions] == pytest.approx([r.share for r in wanted.regions])
        for region in wanted.regions:
            assert region.x + region.width <= WIDTH + 1 if name == "cup" else region.y + region.height <= 33
            assert region.share == pytest.approx(region.area / inside.sum())
        found += len(wanted.regions)
    assert found  # at a false-alarm rate of one half


def predict(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, tiny.ROOT / "tools/predict.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), check=False)


def test_the_region_of_a_class_needs_the_class(of_classes: Path, tmp_path: Path) -> None:
    checkpoint = of_classes.parent / "checkpoints/ckpt.pth.tar"
    image = next((of_classes.parent / "data/cup/test/good").iterdir())
    arguments = [image, "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    outcome = predict(*arguments)
    assert outcome.returncode == 2
    assert "give the class (--class_name): cup, tile" in outcome.stderr
    assert not (tmp_path / "out").exists()
    outcome = predict(*arguments, "--class_name", "cup")
    assert outcome.returncode == 0, outcome.stderr
    picture = cv2.imread(str(next((tmp_path / "out/pictures").iterdir())))
    assert picture[:64, WIDTH + 2 : 64].mean() < 0.5 * picture[:64, : WIDTH - 2].mean()  # dimmed
    with pytest.raises(UserError, match=r"give the class \(--class_name\)"):
        export_checkpoint(checkpoint, "onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_service_inspects_the_region_of_the_class_that_a_request_names(of_classes: Path) -> None:
    checkpoint = of_classes.parent / "checkpoints/ckpt.pth.tar"
    image = next((of_classes.parent / "data/tile/test/hole").iterdir())
    score, _ = Predictor(Predictor.from_checkpoint(checkpoint).engine, "tile")(image)
    service = Service(checkpoint)
    answer = service.predict(image.read_bytes(), class_name="tile").json()
    assert answer["score"] == score
    assert all(region["y"] + region["height"] <= 33 for region in answer["regions"])
    refusal = service.predict(image.read_bytes())
    assert refusal.status_code == 422
    assert "cup, tile" in refusal.text
    assert service.end()[0] == 0


FAULTS = {
    "no file": (None, r"roi\.json cannot be read"),
    "no class": (json.dumps({"cup": LEFT}), "has no region of the class 'tile', only of cup"),
    "no JSON": ("[[0, 0]", "holds no polygons"),
    "pixels": (json.dumps([[[0, 0], [64, 0], [64, 64]]]), "in shares of the image"),
    "a line": (json.dumps([[[0, 0], [1, 1]]]), "holds no polygons"),
    "a number": ("5", "holds no polygons"),
    "too small": (json.dumps([[[0.5, 0.5], [0.5, 0.501], [0.501, 0.5]]]), "nothing of the region"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_region_that_cannot_be_used_is_one_line(evaluated: Path, tmp_path: Path, text: str | None, message: str) -> None:
    path = shutil.copytree(evaluated.parent, tmp_path / "run") / "config.yaml"
    if text is not None:
        (path.parent / "roi.json").write_text(text)
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        tiny.train(path, "dataset.roi=roi.json", "saver.save_dir=other")
    assert "\n" not in str(caught.value)
    assert not list((path.parent / "other").glob("*.tar"))


def test_a_path_with_the_class_in_it(tmp_path: Path) -> None:
    for name, columns in (("cup", 10), ("tile", 50)):
        mask = np.zeros((30, 100), np.uint8)
        mask[:, :columns] = 255
        tiny.save_image(tmp_path / f"{name}.png", mask)
    roi = Roi.read(str(tmp_path / "{clsname}.png"), ["cup", "tile"])
    again = Roi.read(roi.to_list())
    for name, share in (("cup", 0.1), ("tile", 0.5)):
        np.testing.assert_array_equal(again.mask(name), roi.mask(name))
        assert roi.inside(name, (64, 200)).mean() == pytest.approx(share, abs=0.01)
    with pytest.raises(UserError, match=r"there is no file .*plate\.png"):
        Roi.read(str(tmp_path / "{clsname}.png"), ["plate"])


def test_a_crop_that_leaves_nothing_is_one_line(evaluated: Path) -> None:
    (evaluated.parent / "edge.json").write_text(json.dumps([[[0, 0], [0.1, 0], [0.1, 1], [0, 1]]]))
    with pytest.raises(UserError, match=r"dataset\.crop leaves nothing of the region of '(cup|tile)'"):
        tiny.train(evaluated, "dataset.roi=edge.json", "dataset.crop=[32, 32]", "saver.save_dir=cropped")


DAMAGED = ([[]], [["", "no base64"]], [["", "AAAA"]], [["cup"]], [[""], ["", "=="]])


@pytest.mark.parametrize("roi", DAMAGED)
def test_a_damaged_region_in_a_checkpoint_is_one_line(evaluated: Path, tmp_path: Path, roi: list[list[str]]) -> None:
    content = load_checkpoint(evaluated.parent / "checkpoints/ckpt.pth.tar")
    content["config"]["dataset"]["roi"] = roi
    save_checkpoint(tmp_path / "given.pth.tar", content)
    with pytest.raises(UserError, match="region") as caught:
        Predictor.from_checkpoint(tmp_path / "given.pth.tar")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("roi", [*DAMAGED, 5, "/etc/passwd", {"": "AAAA"}, [5]])
def test_a_damaged_region_in_an_exported_file_is_one_line(evaluated: Path, tmp_path: Path, roi: object) -> None:
    export_checkpoint(evaluated.parent / "checkpoints/ckpt.pth.tar", "onnx", tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    next(entry for entry in model.metadata_props if entry.key == "roi").value = json.dumps(roi)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="its metadata 'roi' cannot be used"):
        Predictor.from_checkpoint(tmp_path / "model.onnx")


def test_a_list_is_short_enough_for_a_configuration() -> None:
    noise = np.random.default_rng(0).random((300, 300)) > 0.5
    listed = Roi({"": noise}).to_list()
    assert all(len(piece) <= 4000 for piece in listed[0])
    np.testing.assert_array_equal(Roi.read(listed).mask(None), noise)
