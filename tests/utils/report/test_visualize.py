"""Pictures of an evaluation can be read whatever the maps and images are."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.build import build_dataset
from tests.helpers import tiny
from utils.config import load_config
from utils.evaluation.evaluate import Evaluation, pack_masks
from utils.report.drawing import heat_map, normalise
from utils.report.pictures import save_pictures

SIZE = 64
COLD, HOT = (0, 0, 128), (128, 0, 0)  # RGB of the lowest and highest score


def save_images(folder: Path, images: dict[str, np.ndarray]):
    """The data set of these images, by name; the ones whose name holds "hole" are defective."""
    path = tiny.make(folder)
    records = [{"filename": name, "label": int("hole" in name), "clsname": "cup"} for name in images]
    for name, pixels in images.items():
        tiny.save_image(folder / "data" / name, pixels)
    (folder / "data/test.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    outside = "dataset.image_reader.kwargs.allow_outside=True"
    return build_dataset(load_config(path, [outside]).dataset, "test")


def evaluation_of(data, maps: list[np.ndarray], masks: list[np.ndarray] | None = None) -> Evaluation:
    count = len(data)
    return Evaluation(
        size=(SIZE, SIZE),
        indices=np.arange(count),
        grids=np.stack(maps).astype(np.float32),
        packed_masks=pack_masks(np.zeros((count, SIZE, SIZE)) if masks is None else np.stack(masks)),
        labels=np.array(data.labels),
        losses=np.zeros(count),
        clsnames=np.array(data.clsnames, dtype=object),
        filenames=np.array(data.filenames, dtype=object),
    )


def read(path: Path) -> np.ndarray:
    """H x W x 3, RGB."""
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, path
    return image[..., ::-1].astype(int)


def panels(path: Path) -> list[np.ndarray]:
    """image, mask, map on the common scale, map on its own scale"""
    picture = read(path)
    assert picture.shape == (SIZE, 4 * SIZE, 3)
    return np.split(picture, 4, axis=1)


def drawn(folder: Path) -> set[str]:
    """Names of all files below the folder."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*.*")}


def half(colour: tuple[int, int, int]) -> np.ndarray:
    """What a heat map's colour becomes over a black image."""
    return np.array(colour) / 2


BLACK = np.zeros((SIZE, SIZE, 3), np.uint8)
RAMP = np.tile(np.linspace(0, 10, SIZE, dtype=np.float32), (SIZE, 1))


def test_the_panels_are_image_mask_and_the_map_on_two_scales(tmp_path: Path) -> None:
    red = np.full((SIZE, SIZE, 3), (0, 0, 255), np.uint8)  # BGR
    data = save_images(tmp_path, {"cup/test/good/a.png": BLACK, "cup/test/hole/b.png": red})
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, 32:] = 1
    save_pictures("vis_compound", evaluation_of(data, [RAMP / 2, RAMP], [np.zeros_like(mask), mask]), data, tmp_path / "vis")
    image, truth, _, _ = panels(tmp_path / "vis/cup/test/hole/b.jpg")
    assert np.abs(image[:, :56] - (255, 0, 0)).max() < 8  # away from the seams, which JPEG blurs
    assert truth[:, 8:24].max() < 8
    assert truth[:, 40:56].min() > 247
    _, truth, common, own = panels(tmp_path / "vis/cup/test/good/a.jpg")
    assert truth[:, :56].max() < 8
    middle = heat_map(BLACK, np.full((SIZE, SIZE), 0.5, np.float32)).astype(int)[0, 0]
    for picture, left, right in ((common, half(COLD), middle), (own, half(COLD), half(HOT))):
        assert np.abs(picture[:, :2] - left).mean() < 16
        assert np.abs(picture[:, -2:] - right).mean() < 16


@pytest.mark.parametrize(
    ("max_score", "min_score", "fraction"),
    [(None, None, 0.5), (10, 0, 0.5), (20, 0, 0.25), (None, 0, 0.5), (10, -10, 0.75), (0, None, 0), (0, -5, 1), (5, 5, 0)],
)
def test_a_score_of_zero_is_a_score_and_scores_outside_are_clipped(
    tmp_path: Path, max_score: float | None, min_score: float | None, fraction: float
) -> None:
    data = save_images(tmp_path, {"cup/test/good/flat.png": BLACK, "cup/test/good/ramp.png": BLACK})
    flat = np.full((SIZE, SIZE), 5, np.float32)
    save_pictures("vis_single", evaluation_of(data, [flat, RAMP]), data, tmp_path / "vis", max_score, min_score)
    expected = heat_map(BLACK, np.full((SIZE, SIZE), fraction, np.float32)).astype(int)
    assert np.abs(read(tmp_path / "vis/cup/test/good/flat_map.jpg") - expected).max() < 8


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("style", ["vis_compound", "vis_single"])
def test_flat_maps_are_drawn_as_coldest(tmp_path: Path, style: str, value: float) -> None:
    data = save_images(tmp_path, {"cup/test/good/a.png": BLACK})
    save_pictures(style, evaluation_of(data, [np.full((SIZE, SIZE), value)]), data, tmp_path / "vis")
    folder = tmp_path / "vis/cup/test/good"
    maps = panels(folder / "a.jpg")[2:] if style == "vis_compound" else [read(folder / "a_map.jpg")]
    for picture in maps:
        assert np.abs(picture[:, 8:] - half(COLD)).max() < 8


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_a_flat_map_is_not_divided_by_nothing(value: float) -> None:
    flat = np.full((2, 2), value, np.float32)
    assert not normalise(flat, value, value).any()


@pytest.mark.parametrize("style", ["vis_compound", "vis_single"])
def test_grey_and_odd_sized_images_are_drawn_at_the_maps_size(tmp_path: Path, style: str) -> None:
    rng = np.random.default_rng(0)
    images = {
        "cup/test/good/grey.png": np.full((37, 91), 200, np.uint8),
        "cup/test/good/alpha.png": rng.integers(0, 256, (64, 64, 4), dtype=np.uint8),
        "cup/test/hole/large.jpg": rng.integers(0, 256, (301, 123, 3), dtype=np.uint8),
        "cup/test/hole/tiny é.bmp": rng.integers(0, 256, (1, 3, 3), dtype=np.uint8),
    }
    data = save_images(tmp_path, images)
    save_pictures(style, evaluation_of(data, [RAMP] * len(images)), data, tmp_path / "vis")
    endings = [""] if style == "vis_compound" else ["_image", "_map"]
    pictures = drawn(tmp_path / "vis")
    assert pictures == {f"{Path(name).with_suffix('')}{ending}.jpg" for name in images for ending in endings}
    if style == "vis_single":
        assert np.abs(read(tmp_path / "vis/cup/test/good/grey_image.jpg") - 200).max() < 4
    for name in pictures:
        assert read(tmp_path / "vis" / name).shape == (SIZE, SIZE * (4 if style == "vis_compound" else 1), 3)


def test_pictures_stay_below_their_folder(tmp_path: Path) -> None:
    data = save_images(tmp_path / "in", {"../../outside.png": BLACK})
    save_pictures("vis_compound", evaluation_of(data, [RAMP]), data, tmp_path / "vis")
    assert [file.name for file in (tmp_path / "vis").rglob("*.jpg")] == ["outside.jpg"]


def test_evaluation_draws_every_test_image(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    vis = ("evaluator.vis_compound.save_dir=compound", "evaluator.vis_single={save_dir: single, max_score: 0, min_score: 0}")
    tiny.train(path, *vis)
    assert not (tmp_path / "compound").exists()
    tiny.evaluate(path, *vis)
    names = build_dataset(load_config(path).dataset, "test").filenames
    assert drawn(tmp_path / "compound") == {name.replace(".png", ".jpg") for name in names}
    assert drawn(tmp_path / "single") == {name.replace(".png", f"_{part}.jpg") for name in names for part in ("image", "map")}
    truth = panels(tmp_path / "compound/cup/test/hole/000.jpg")[1]
    mask = cv2.imread(str(tmp_path / "data/cup/ground_truth/hole/000_mask.png"))
    assert np.mean((truth > 127) == (mask > 127)) > 0.97
