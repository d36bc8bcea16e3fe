"""The Predictor in code: the numbers of evaluation, for images of any source, with or without torch."""

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.tiles import Tiles
from tests.helpers import tiny
from utils.config import load_config
from utils.errors import UserError
from utils.predict.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> np.ndarray:
    """A photograph of 90 x 50 pixels, RGB."""
    rng = np.random.default_rng(1)
    return cv2.resize(rng.integers(0, 256, (5, 9, 3), dtype=np.uint8), (90, 50))


def evaluated(path: Path, *overrides: str) -> dict[str, dict[str, float]]:
    """The scores of each image in scores.csv; with overrides the evaluation runs again first."""
    if overrides:
        tiny.evaluate(path, *overrides)
    with open(path.parent / "result/scores.csv", newline="") as file:
        return {row["filename"]: {name: float(row[name]) for name in ("mean", "std", "max")} for row in csv.DictReader(file)}


# --- the same numbers as evaluation ---


def test_scores_are_those_of_evaluation(trained: Path, predictor: Predictor) -> None:
    for name, scores in evaluated(trained).items():
        score, _ = predictor(trained.parent / "data" / name)
        assert score == pytest.approx(scores["max"], rel=1e-5)


@pytest.mark.parametrize("name", ["mean", "std", "max"])
def test_the_score_is_the_headline_score_of_the_configuration(trained: Path, checkpoint: Path, name: str) -> None:
    overrides = [f"evaluator.key_metric=mean_{name}_auc"]
    predictor = Predictor.from_checkpoint(checkpoint, config=load_config(trained, overrides))
    for filename, scores in evaluated(trained).items():
        assert predictor(trained.parent / "data" / filename)[0] == pytest.approx(scores[name], rel=1e-5)


@pytest.mark.parametrize("mode", ["BGR", "GRAY"])
def test_colours_are_as_configured(trained: Path, checkpoint: Path, mode: str, tmp_path: Path) -> None:
    overrides = [f"dataset.image_reader.kwargs.color_mode={mode}", f"evaluator.save_dir={tmp_path}"]
    tiny.evaluate(trained, *overrides)
    predictor = Predictor.from_checkpoint(checkpoint, config=load_config(trained, overrides))
    with open(tmp_path / "scores.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert predictor(trained.parent / "data" / row["filename"])[0] == pytest.approx(float(row["max"]), rel=1e-5)


# --- what an image may be ---


def test_a_list_gives_lists_in_its_order(trained: Path, predictor: Predictor) -> None:
    paths = [trained.parent / "data" / name for name in evaluated(trained)]
    scores, maps = predictor(paths, batch_size=4)
    assert scores == pytest.approx([predictor(path)[0] for path in paths], rel=1e-5)
    assert len(maps) == len(paths)
    assert predictor([]) == ([], [])


def test_the_map_has_the_images_size(predictor: Predictor, photo: np.ndarray) -> None:
    score, anomaly_map = predictor(photo)
    assert isinstance(score, float)
    assert anomaly_map.shape == (50, 90)
    assert anomaly_map.dtype == np.float32
    scores, maps = predictor([photo, photo.transpose(1, 0, 2), photo[:7, :3]])
    assert [anomaly_map.shape for anomaly_map in maps] == [(50, 90), (90, 50), (7, 3)]
    assert len(set(scores)) == 3


def test_path_text_picture_and_array_are_the_same_image(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    scores, maps = predictor([path, str(path), Image.open(path), photo])
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-6)
    for anomaly_map in maps[1:]:
        np.testing.assert_allclose(anomaly_map, maps[0], rtol=1e-5)


def test_a_picture_that_its_exif_data_turn_is_the_file(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(photo).save(path, exif=exif)
    (by_path, by_picture), maps = predictor([path, Image.open(path)])
    assert by_picture == pytest.approx(by_path, rel=1e-6)
    assert [anomaly_map.shape for anomaly_map in maps] == [(90, 50), (90, 50)]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "I;16"])
def test_other_kinds_of_picture_are_the_file(predictor: Predictor, photo: np.ndarray, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.png"
    if mode == "I;16":
        Image.fromarray(photo[..., 0].astype(np.uint16) * 256 + 9).save(path)
    else:
        Image.fromarray(photo).convert(mode).save(path)
    by_path, by_picture = predictor([path, Image.open(path)])[0]
    assert by_picture == pytest.approx(by_path, rel=1e-5)


def test_grey_arrays_and_arrays_with_alpha_are_taken(predictor: Predictor, photo: np.ndarray) -> None:
    alpha = np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)])
    grey = photo[..., 0]
    scores, _ = predictor([photo, alpha, np.dstack([grey] * 3), grey, grey[..., None]])
    assert scores[1] == scores[0]
    assert scores[3] == scores[4] == scores[2]


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8, 3), np.uint8), 7, None])
def test_what_is_no_image_is_said(predictor: Predictor, image: object) -> None:
    with pytest.raises(UserError, match="an image "):
        predictor(image)


def test_a_file_that_cannot_be_read_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            predictor(tmp_path / name)


# --- checkpoints ---


def test_a_published_checkpoint_needs_a_configuration(
    trained: Path, checkpoint: Path, predictor: Predictor, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    published = tmp_path / "published.pth.tar"
    torch.save({key: content[key] for key in ("epoch", "arch", "state_dict", "best_metric")}, published)
    with pytest.raises(UserError, match=r"published\.pth\.tar: .*--config"):
        Predictor.from_checkpoint(published)
    image = trained.parent / "data/cup/test/good/000.png"
    assert Predictor.from_checkpoint(published, config=trained)(image)[0] == predictor(image)[0]


def test_a_network_without_maps_and_an_unknown_device_are_said(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    decoder = {"type": "models.reconstructions.VisDecoder", "kwargs": {"block_type": "basic"}}
    content["config"]["net"][-1] |= decoder
    del content["config"]["evaluator"], content["config"]["criterion"]
    torch.save(content, tmp_path / "decoder.pth.tar")
    with pytest.raises(UserError, match=r"decoder\.pth\.tar: .*no anomaly maps"):
        Predictor.from_checkpoint(tmp_path / "decoder.pth.tar")
    with pytest.raises(UserError, match="device 'abacus'"):
        Predictor.from_checkpoint(checkpoint, device="abacus")


# --- any engine ---


class Brightness:
    """An engine without a network: the map is the image's red channel, the score its mean."""

    input_size, resample, score, score_key, calibration, roi = (4, 6), "bilinear", "mean", ("mean", None), None, None

    def __init__(self, color_mode: str, tiles: Tiles | None = None) -> None:
        self.color_mode, self.tiles = color_mode, tiles
        self.seen: list[np.ndarray] = []

    def __call__(self, images: np.ndarray, insides: list | None = None) -> tuple[np.ndarray, np.ndarray]:
        assert insides == (None if self.tiles else [None] * len(images))
        self.seen.append(images)
        maps = images[..., 0].astype(np.float32)
        return maps.mean(axis=(1, 2)), maps


def test_tiles_go_through_the_engine_a_few_at_a_time_and_join(photo: np.ndarray) -> None:
    engine = Brightness("RGB", Tiles((4, 6), 2))
    score, anomaly_map = Predictor(engine)(photo)  # a map pixel is one of the photograph
    assert max(len(images) for images in engine.seen) == 8
    np.testing.assert_allclose(anomaly_map, photo[..., 0], atol=1e-3)
    assert score == pytest.approx(photo[..., 0].mean())


@pytest.mark.parametrize("mode", ["RGB", "BGR"])
def test_an_engine_gets_rgb_batches_of_its_size(photo: np.ndarray, mode: str) -> None:
    red = np.zeros((9, 9, 3), np.uint8) + np.array([200, 10, 0], np.uint8)
    engine = Brightness(mode)
    scores, maps = Predictor(engine)([red, photo, red], batch_size=2)
    assert [(images.shape, images.dtype) for images in engine.seen] == [((2, 4, 6, 3), np.uint8), ((1, 4, 6, 3), np.uint8)]
    assert scores[0] == scores[2] == 200
    assert maps[0].shape == (9, 9)


def test_an_engine_of_grey_images_gets_equal_channels(photo: np.ndarray) -> None:
    engine = Brightness("GRAY")
    Predictor(engine)(photo)
    (images,) = engine.seen
    assert (images[..., :1] == images).all()


def test_a_map_that_is_not_finite_is_an_error(photo: np.ndarray) -> None:
    class Broken(Brightness):
        def __call__(self, images: np.ndarray, insides: list) -> tuple[np.ndarray, np.ndarray]:
            scores, maps = super().__call__(images, insides)
            return scores, maps * np.nan

    with pytest.raises(UserError, match=r"image 1 of 1: .*not finite"):
        Predictor(Broken("RGB"))(photo)


def test_nothing_but_opening_a_checkpoint_needs_torch() -> None:
    modules = "utils.process.cli, utils.predict.predictor, utils.predict.run, utils.evaluation.calibration, datasets.images"
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
