"""dataset.crop and evaluator.map: training, cache, evaluation, prediction, export and pictures see the same part of an image."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.build import build_dataset
from tests.helpers import tiny
from tests.helpers.exported import images_of
from tests.helpers.started_runs import result
from utils.config import load_config
from utils.predict.export import export_checkpoint
from utils.predict.predictor import Predictor
from utils.predict.torch_engine import TorchEngine

# The differences are odd: 17 rows, of which 8 are above the crop, and 15 columns, of which 7 are left of it.
CROP = ("dataset.input_size=[65, 71]", "dataset.crop=[48, 56]")
TOP = ("evaluator.metrics.auc=[{name: top, kwargs: {share: 0.05}}, {name: pixel}]", "evaluator.key_metric=mean_top_auc")
FORMS = {
    "crop": CROP,
    "map": ("evaluator.map={size: [40, 32], sigma: 4.0}",),
    "both": (*CROP, "evaluator.map={size: [24, 28], sigma: 1.0}", *TOP),
}
SCORES = {"crop": "max", "map": "max", "both": "top"}
SIZES = {"crop": (48, 56), "map": (40, 32), "both": (24, 28)}  # of the maps that are evaluated
PICTURES = ("evaluator.vis_compound.save_dir=compound", "evaluator.vis_single.save_dir=single")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")  # torch 2.14 and later


@pytest.fixture(scope="module", params=FORMS)
def form(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(form: str, tmp_path_factory) -> Path:
    """The configuration of a trained and evaluated network."""
    path = tiny.make(tmp_path_factory.mktemp(form))
    tiny.train(path, *FORMS[form])
    tiny.evaluate(path, *FORMS[form], *PICTURES)
    return path


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained.parent / "checkpoints/ckpt.pth.tar"


def scores_of_evaluation(path: Path, score: str) -> dict[str, float]:
    with open(path.parent / "result/scores.csv", encoding="utf-8", newline="") as file:
        return {row["filename"]: float(row[score]) for row in csv.DictReader(file)}


def predict(engine: TorchEngine, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the test set: the engine's inputs, its scores and its maps."""
    images = np.stack([Predictor(engine).prepare(image).images[0] for image in images_of(folder)[1]])
    return images, *engine(images)


def test_prediction_gives_the_scores_of_evaluation(form: str, trained: Path, checkpoint: Path) -> None:
    expected = scores_of_evaluation(trained, SCORES[form])
    predictor = Predictor.from_checkpoint(checkpoint)
    assert predictor.engine.score == SCORES[form]
    scores, maps = predictor([trained.parent / "data" / name for name in expected])
    assert scores == pytest.approx(list(expected.values()), rel=1e-4)
    assert {anomaly_map.shape for anomaly_map in maps} == {(64, 64)}  # of the whole image


def test_an_exported_file_gives_the_scores_and_maps_of_prediction(trained: Path, checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, "onnx", out := tmp_path / "file.onnx")
    images, scores, maps = predict(TorchEngine(checkpoint, "cpu"), trained.parent)
    file_scores, file_maps = Predictor.from_checkpoint(out).engine(images)
    assert file_maps.shape == maps.shape
    assert np.abs(file_maps - maps).max() <= 1e-4 * np.ptp(maps)
    assert file_scores == pytest.approx(scores, rel=1e-4)


def test_the_map_is_the_networks_inside_the_crop_and_0_outside(form: str, trained: Path, checkpoint: Path) -> None:
    engine = TorchEngine(checkpoint, "cpu")
    images, _, maps = predict(engine, trained.parent)
    height, width = SIZES[form]
    top, left = {"crop": (8, 7), "map": (0, 0), "both": (4, 4)}[form]
    data = build_dataset(engine.config.dataset, "test")
    batch = torch.stack([data[index]["image"] for index in range(len(data))])
    with torch.no_grad():
        seen = engine.form(engine.network({"image": batch})["pred"])[:, 0].numpy()
    inside = np.zeros(maps.shape[1:], bool)
    inside[top : top + height, left : left + width] = True
    np.testing.assert_allclose(maps[:, inside].reshape(seen.shape), seen, rtol=1e-5)
    assert (maps[:, ~inside] == 0).all()
    assert (seen > 0).any()
    if form == "crop":
        assert maps.shape[1:] == images.shape[1:3] == (65, 71)


def test_cached_features_give_the_losses_and_metrics_that_images_do(form: str, trained: Path, tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    tiny.train(path, *FORMS[form], "dataset.feature_cache.mode=off")
    assert (trained.parent / "feature_cache").is_dir()
    (uncached,), (cached,) = result(path)["history"], result(trained)["history"]
    assert cached == pytest.approx(uncached, rel=1e-3)  # a batch of other images rounds features otherwise


def test_a_cache_of_another_crop_is_not_taken(form: str, trained: Path, log_text) -> None:
    options = (*CROP[:1], "dataset.crop=[56, 56]", "saver.save_dir=other", "evaluator.save_dir=other", "saver.log_dir=other")
    tiny.train(trained, *options, overwrite=True)
    assert log_text().count("built in") == 2
    assert "read from" not in log_text()


def test_evaluated_maps_masks_and_pictures_have_the_finished_size(form: str, trained: Path) -> None:
    height, width = SIZES[form]
    for name in ("compound/cup/test/hole/000.jpg", "single/cup/test/hole/000_image.jpg", "single/cup/test/hole/000_map.jpg"):
        columns = 4 * width if name.startswith("compound") else width
        assert cv2.imread(str(trained.parent / name)).shape == (height, columns, 3), name
    gallery = json.loads((trained.parent / "result/report_gallery/gallery.json").read_text())
    seen = build_dataset(load_config(trained, FORMS[form]).dataset, "test").read_seen(0).shape  # in its own proportions
    for image in gallery["images"]:
        for name in image["pictures"].values():
            assert cv2.imread(str(trained.parent / "result/report_gallery" / name)).shape == seen, name


def test_the_picture_shows_what_the_network_saw_and_the_mask_of_that_part(form: str, trained: Path) -> None:
    data = build_dataset(load_config(trained, FORMS[form]).dataset, "test")
    index = data.filenames.index("cup/test/hole/000.png")
    height, width = SIZES[form]
    picture = cv2.imread(str(trained.parent / "compound/cup/test/hole/000.jpg"))[..., ::-1]
    seen = data.transform.arrays(data.read_rgb(index), None, None)[0]
    expected = cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(picture[:, :width].astype(int) - expected).mean() < 20  # of a JPEG; another part of the noise differs by more
    mask = cv2.resize(data[index]["mask"][0].numpy(), (width, height), interpolation=cv2.INTER_NEAREST)
    assert np.mean((picture[:, width : 2 * width, 0] > 127) == (mask > 0)) > 0.97
