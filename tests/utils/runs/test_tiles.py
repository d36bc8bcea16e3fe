"""Photographs in tiles, from training to the exported file."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from datasets.build import build_dataset
from datasets.tiled import in_tiles
from tests.helpers import tiny
from tests.helpers.services import Service
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.evaluation.decisions import Rule
from utils.predict.bundle import anomaly
from utils.predict.export import export_bundle, export_checkpoint
from utils.predict.predictor import Predictor
from utils.report.result_folder import read_result
from utils.runs.add_class import add_classes
from utils.runs.calibrate import calibrate_checkpoint

TILES = "dataset.tiles={size: [64, 64], overlap: 24}"
SCORES = "{name: mean}, {name: std}, {name: top}, {name: max, kwargs: {avgpool_size: [4, 4]}}"
WINDOW = f"evaluator.metrics.auc=[{SCORES}, {{name: pixel}}]"
SIZES = [(64, 64), (100, 150), (64, 130), (50, 90)]  # of photographs, by turns
DINOMALY = tuple("dataset.input_size=[64, 64]" if "input_size" in one else one for one in tiny.DINOMALY if "crop" not in one)
RECONSTRUCTIONS = {"UniAD": (WINDOW,), "Memory": (tiny.MEMORY, WINDOW), "Dinomaly": DINOMALY}


def make(folder: Path) -> Path:
    """The tiny data set with photographs of several sizes, of which a defect is a small part; returns the configuration."""
    path = tiny.make(folder)
    files = sorted((folder / "data").glob("*/t*/*/*.png"))
    for number, file in enumerate(files):
        mask = file.parents[2] / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        height, width = SIZES[number % len(SIZES)]
        for picture in filter(Path.exists, (file, mask)):
            pixels = cv2.imread(str(picture))
            clean = pixels if picture is file else np.zeros_like(pixels)
            whole = np.tile(clean, (2, 3, 1))
            whole[:64, :64] = pixels
            tiny.save_image(picture, whole[:height, :width])
    return path


@pytest.fixture(scope="module", params=RECONSTRUCTIONS)
def evaluated(request, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """A configuration, and the overrides with which it was trained in tiles, calibrated and evaluated."""
    path = make(tmp_path_factory.mktemp(request.param))
    overrides = (*RECONSTRUCTIONS[request.param], TILES, "dataset.holdout=0.4")
    tiny.train(path, *overrides)
    calibrate_checkpoint(load_config(path, overrides), path.parent / "checkpoints/ckpt.pth.tar", 0.5, min_area=0.001)
    tiny.evaluate(path, *overrides)
    return path, overrides


def files_of(path: Path) -> list[Path]:
    return [path.parent / "data" / name for name in read_result(path.parent / "result").scores.filenames]


def test_prediction_gives_the_scores_of_evaluation(evaluated) -> None:
    path, _ = evaluated
    predictor = Predictor.from_checkpoint(path.parent / "checkpoints/ckpt.pth.tar")
    files = files_of(path)
    assert len(files) == len(set(files)) == 9  # photographs, not tiles
    scores, maps = predictor(files)
    found = read_result(path.parent / "result").scores.scores[predictor.engine.score]
    np.testing.assert_allclose(scores, found, rtol=1e-5)
    sizes = {one.shape for one in maps}
    assert sizes == {cv2.imread(str(file)).shape[:2] for file in files}
    assert len(sizes) > 2


def test_what_is_evaluated_are_the_photographs_at_the_scale_of_their_tiles(evaluated) -> None:
    """The regions in regions.csv lie inside of the joined maps, and each photograph has one line in scores.csv."""
    path, overrides = evaluated
    table = (path.parent / "result/scores.csv").read_text().splitlines()
    shares = {line.split(",")[0]: float(line.split(",")[-1]) for line in table[1:]}
    for name, share in shares.items():
        mask = path.parent / "data" / name.replace("test", "ground_truth").replace(".png", "_mask.png")
        wanted = 100 * (cv2.imread(str(mask), 0) > 0).mean() if mask.exists() else 0
        assert share == pytest.approx(wanted, rel=0.15)
    pictures = {"evaluator.vis_compound={save_dir: pictures}", "evaluator.save_dir=other"}
    tiny.evaluate(path, *overrides, *pictures)
    drawn = {cv2.imread(str(file)).shape for file in (path.parent / "pictures").rglob("*.jpg")}
    assert len(drawn) > 2


def test_exported_files_and_the_bundle_decide_as_the_checkpoint_does(evaluated, tmp_path: Path) -> None:
    path, _ = evaluated
    checkpoint = path.parent / "checkpoints/ckpt.pth.tar"
    export_checkpoint(checkpoint, "onnx", tmp_path / "model.onnx")
    export_bundle(checkpoint, tmp_path / "line")
    here = Predictor.from_checkpoint(checkpoint)
    there, exported = anomaly.Predictor(tmp_path / "line/model.onnx"), Predictor.from_checkpoint(tmp_path / "model.onnx")
    rule, found = Rule.of(here.engine.calibration), 0
    files = files_of(path)
    for file, score, anomaly_map in zip(files, *here(files), strict=True):
        decisions = [rule.decide(score, anomaly_map), rule.decide(*exported(file))]
        result = there(file)
        assert decisions[0].verdict == decisions[1].verdict == result.decision
        assert result.score == pytest.approx(score, rel=1e-5)
        for regions in (decisions[1].regions, result.regions):
            assert [asdict(r) for r in regions] == [pytest.approx(asdict(r), rel=1e-4) for r in decisions[0].regions]
        np.testing.assert_allclose(result.anomaly_map, anomaly_map, atol=1e-4 * np.ptp(anomaly_map))
        found += len(decisions[0].regions)
    assert found


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = make(tmp_path_factory.mktemp("trained"))
    path.write_text(path.read_text().replace("  batch_size: 4", "  batch_size: 4\n  tiles: {size: [64, 64], overlap: 24}"))
    tiny.train(path)
    tiny.evaluate(path)
    return path


def scores(path: Path, folder: str = "result") -> dict[str, np.ndarray]:
    return read_result(path.parent / folder).scores.scores


OTHER_WAYS = {
    "workers": ("dataset.workers=2", "dataset.batch_size=3"),
    "no cache": ("dataset.feature_cache.mode=off",),
}


@pytest.mark.parametrize("overrides", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_scores_depend_on_no_other_setting(trained: Path, overrides: tuple[str, ...]) -> None:
    tiny.evaluate(trained, *overrides, "evaluator.save_dir=other")
    for name, values in scores(trained, "other").items():
        np.testing.assert_allclose(values, scores(trained)[name], rtol=1e-5)


def test_two_processes_train_and_evaluate_whole_photographs(trained: Path, tmp_path: Path) -> None:
    path = shutil.copytree(trained.parent, tmp_path / "run") / "config.yaml"
    outcome = tiny.run_tool(path, "-e", "evaluator.save_dir=two", processes=2)
    assert outcome.code == 0, outcome.stderr
    for name, values in scores(path, "two").items():
        np.testing.assert_allclose(values, scores(path)[name], rtol=1e-5)
    outcome = tiny.run_tool(path, "saver.save_dir=again", processes=2)
    assert outcome.code == 0, outcome.stderr
    assert "10 (in 39 tiles) training images, 9 (in 29 tiles) test images" in outcome.stdout


def test_photographs_of_one_tile_give_what_they_give_without_tiles(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    runs = {"whole": (), "tiles": ("dataset.tiles={size: [64, 64], overlap: 10}",)}
    for name, overrides in runs.items():
        own = (*overrides, f"saver.save_dir={name}", f"saver.load_path={name}/ckpt.pth.tar", f"evaluator.save_dir={name}/result")
        tiny.train(path, *own)
        tiny.evaluate(path, *own)
    for name, values in scores(path, "tiles/result").items():
        np.testing.assert_array_equal(values, scores(path, "whole/result")[name])
    assert (tmp_path / "tiles/result/metrics.json").read_text() == (tmp_path / "whole/result/metrics.json").read_text()


CACHES = {"features": (), "images": ("dataset.hflip=True",)}


@pytest.mark.parametrize("overrides", CACHES.values(), ids=CACHES)
def test_the_cache_of_other_tiles_is_not_used(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    path = make(tmp_path)
    for overlap in (24, 30, 24):
        tiny.train(path, *overrides, f"dataset.tiles={{size: [64, 64], overlap: {overlap}}}", overwrite=True)
    assert len(list((tmp_path / "feature_cache").glob("train-*"))) == 2


def test_what_is_outside_of_the_region_of_interest_changes_nothing(tmp_path: Path) -> None:
    found = {}
    for name in ("as it is", "spoilt"):
        path = make(tmp_path / name)
        (path.parent / "roi.json").write_text(json.dumps([[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]))
        if name == "spoilt":
            rng = np.random.default_rng(1)
            for file in sorted((path.parent / "data").glob("*/t*/*/*.png")):
                image = cv2.imread(str(file))
                image[:, -(-image.shape[1] // 2) + 1 :] = rng.integers(0, 256, 3)
                tiny.save_image(file, image)
        overrides = ("dataset.roi=roi.json", TILES, "dataset.holdout=0.4")
        tiny.train(path, *overrides)
        checkpoint = path.parent / "checkpoints/ckpt.pth.tar"
        calibrate_checkpoint(load_config(path, overrides), checkpoint, 0.5)
        tiny.evaluate(path, *overrides)
        export_bundle(checkpoint, path.parent / "line")
        predictor, files = Predictor.from_checkpoint(checkpoint), files_of(path)
        values, maps = predictor(files)
        np.testing.assert_allclose(values, scores(path)[predictor.engine.score], rtol=1e-5)
        there, rule = anomaly.Predictor(path.parent / "line/model.onnx"), Rule.of(predictor.engine.calibration)
        for file, score, anomaly_map in zip(files, values, maps, strict=True):
            assert not anomaly_map[:, anomaly_map.shape[1] // 2 + 2 :].any()
            result, inspected = there(file), predictor.score([predictor.prepare(cv2.imread(str(file))[..., ::-1])])[0][2].mean()
            assert result.score == pytest.approx(score, rel=1e-5)
            wanted = rule.decide(score, anomaly_map, float(inspected))
            assert [asdict(r) for r in result.regions] == [pytest.approx(asdict(r), rel=1e-4) for r in wanted.regions]
        found[name] = values, scores(path)
    np.testing.assert_array_equal(found["as it is"][0], found["spoilt"][0])
    for name, values in found["spoilt"][1].items():
        np.testing.assert_array_equal(values, found["as it is"][1][name])


def test_the_tiles_outside_of_the_region_are_not_trained_on(trained: Path) -> None:
    (trained.parent / "corner.json").write_text(json.dumps([[[0, 0], [0.2, 0], [0.2, 0.2], [0, 0.2]]]))
    counts = []
    for roi in ("null", "corner.json"):
        dataset = to_plain(load_config(trained, (f"dataset.roi={roi}",)).dataset)
        counts.append(len(in_tiles(build_dataset(dataset, "train"))))
    assert counts == [39, 10]  # the left upper one of each photograph


def test_the_service_answers_for_the_whole_photograph(trained: Path) -> None:
    checkpoint = trained.parent / "checkpoints/ckpt.pth.tar"
    files = files_of(trained)
    service = Service(checkpoint)
    for file, score in zip(files, Predictor.from_checkpoint(checkpoint)(files)[0], strict=True):
        answer = service.predict(file.read_bytes()).json()
        assert answer["score"] == pytest.approx(score, rel=1e-5)
        assert (answer["height"], answer["width"]) == cv2.imread(str(file)).shape[:2]
    assert service.end()[0] == 0


def test_a_photograph_that_cannot_be_read_is_skipped_as_a_whole(trained: Path, tmp_path: Path) -> None:
    path = shutil.copytree(trained.parent, tmp_path / "run") / "config.yaml"
    bad = sorted((path.parent / "data/cup/test/good").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"cup/test/good/{bad.name} .*is not an image"):
        tiny.evaluate(path)
    tiny.evaluate(path, "dataset.on_bad_image=skip", "evaluator.save_dir=other")
    result = read_result(path.parent / "other").scores
    assert len(result.filenames) == 8
    assert not [name for name in result.filenames if name == f"cup/test/good/{bad.name}"]


def test_a_damaged_photograph_is_one_bad_sample(tmp_path: Path) -> None:
    """Its head says that it would have many tiles. It changes neither a class's share in a memory nor the number of steps."""
    path = make(tmp_path)
    bad = tmp_path / "data/cup/train/good/002.png"
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1500, 3), dtype=np.uint8)
    tiny.save_image(bad, noise)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    data = in_tiles(build_dataset(to_plain(load_config(path, (TILES, "dataset.on_bad_image=skip")).dataset), "train"))
    assert data.filenames.count("cup/train/good/002.png") == 1
    tiny.train(path, tiny.MEMORY, TILES, "dataset.on_bad_image=skip")
    memory = Predictor.from_checkpoint(tmp_path / "checkpoints/ckpt.pth.tar").engine.memory
    assert np.bincount(memory.owner).tolist() == [100, 100]
    with pytest.raises(UserError, match=r"cup/train/good/002\.png .*is not an image"):
        tiny.train(path, tiny.MEMORY, TILES, overwrite=True)


SMALL = "evaluator.map={size: [8, 8]}"  # of a tile
BAND = [[[0, 0.1], [1, 0.1], [1, 0.16], [0, 0.16]]]


def test_a_thin_region_in_small_maps_has_scores(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "roi.json").write_text(json.dumps(BAND))
    scores_of = "evaluator.metrics.auc=[{name: max}, {name: mean}, {name: std}, {name: top}, {name: pixel}]"
    overrides = ("dataset.roi=roi.json", TILES, SMALL, scores_of, "dataset.holdout=0.4")
    tiny.train(path, *overrides)
    calibrate_checkpoint(load_config(path, overrides), tmp_path / "checkpoints/ckpt.pth.tar", 0.5)
    tiny.evaluate(path, *overrides)
    export_bundle(tmp_path / "checkpoints/ckpt.pth.tar", tmp_path / "line")
    predictor, there = (
        Predictor.from_checkpoint(tmp_path / "checkpoints/ckpt.pth.tar"),
        anomaly.Predictor(tmp_path / "line/model.onnx"),
    )
    files = files_of(path)
    values, _ = predictor(files)
    assert min(values) > 0
    np.testing.assert_allclose(values, scores(path)[predictor.engine.score], rtol=1e-5)
    np.testing.assert_allclose(values, [there(file).score for file in files], rtol=1e-5)


def test_a_photograph_smaller_than_the_window_of_its_score_has_a_score(trained: Path, tmp_path: Path) -> None:
    tiny.save_image(tmp_path / "in/thin.png", np.full((1, 200, 3), 90, np.uint8))
    checkpoint = trained.parent / "checkpoints/ckpt.pth.tar"
    export_bundle(checkpoint, tmp_path / "line")
    engine = Predictor.from_checkpoint(checkpoint).engine
    engine.score, engine.score_key = "max", ("max", (16, 16))
    score, anomaly_map = Predictor(engine)(tmp_path / "in/thin.png")
    assert anomaly_map.shape == (1, 200)
    there = anomaly.Predictor(tmp_path / "line/model.onnx")
    there.metadata |= {"score": "max", "score_option": [16, 16]}
    assert there(tmp_path / "in/thin.png").score == pytest.approx(score, rel=1e-5)


def test_an_error_of_a_photograph_names_it(trained: Path) -> None:
    (trained.parent / "edge.json").write_text(json.dumps([[[0.98, 0], [0.99, 0], [0.99, 0.01], [0.98, 0.01]]]))
    with pytest.raises(UserError, match=r"(cup|tile)/train/good/\d+\.png: dataset\.roi: no tile shows anything"):
        tiny.train(trained, "dataset.roi=edge.json", "saver.save_dir=other")


def test_a_class_is_added_from_tiles(tmp_path: Path) -> None:
    path = make(tmp_path)
    tiny.train(path, tiny.MEMORY, TILES, "dataset.class_name=cup")
    checkpoint = path.parent / "checkpoints/ckpt.pth.tar"
    lines = [line for line in (tmp_path / "data/train.json").read_text().splitlines() if "tile/" in line]
    (tmp_path / "tile.json").write_text("\n".join(lines) + "\n")
    add_classes(checkpoint, tmp_path / "tile.json", out=tmp_path / "both.pth.tar")
    files = sorted((tmp_path / "data/tile/train/good").iterdir())
    before, after = (np.mean(Predictor.from_checkpoint(file)(files)[0]) for file in (checkpoint, tmp_path / "both.pth.tar"))
    assert after < 0.5 * before


FAULTS = {
    "overlap": ("dataset.tiles={size: [64, 32], overlap: 32}", r"dataset\.tiles\.overlap 32 must be less than the sides"),
    "no overlap": ("dataset.tiles={size: [64, 32]}", r"dataset\.tiles\.overlap is missing"),
    "size": ("dataset.tiles={size: 64, overlap: 3}", r"dataset\.tiles\.size must be two positive whole numbers"),
    "crop": ("dataset.crop=[32, 32]", r"dataset\.crop would cut the edges of each tile"),
    "max_pixels": ("dataset.image_reader.kwargs.max_pixels=1000", r"max_pixels would halve photographs"),
    "save_recon": ("net.reconstruction.kwargs.save_recon={save_dir: f}", r"save_recon is for whole images"),
    "cifar10": ("dataset.type=cifar10", "custom, not cifar10"),
}


@pytest.mark.parametrize(("override", "message"), FAULTS.values(), ids=FAULTS)
def test_tiles_that_cannot_be_are_one_line(trained: Path, override: str, message: str) -> None:
    more = ("dataset.root_dir=x", "dataset.normals=[1]") if "cifar10" in override else ()
    with pytest.raises(UserError, match=message):
        load_config(trained, (override, *more))


@pytest.mark.parametrize("tiles", [5, [], {}, {"size": [64, 64], "overlap": 64}, {"size": [64, 64], "overlap": -1}, {"size": 64}])
def test_damaged_tiles_in_an_exported_file_are_one_line(trained: Path, tmp_path: Path, tiles: object) -> None:
    export_checkpoint(trained.parent / "checkpoints/ckpt.pth.tar", "onnx", tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    next(entry for entry in model.metadata_props if entry.key == "tiles").value = json.dumps(tiles)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="its metadata 'tiles' cannot be used"):
        Predictor.from_checkpoint(tmp_path / "model.onnx")
