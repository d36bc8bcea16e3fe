"""vis_recon draws every image whose features were saved: its decoded reconstruction and its decoded input features."""

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import build_network
from models.reconstructions import VisDecoder
from tests.helpers import tiny
from tests.helpers.golden_cases import golden_weights
from tests.helpers.vis_runs import NET, files, one_thread, read, run_tool
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.naming import feature_names
from utils.process.checkpoint import network_state, save_checkpoint
from utils.process.distributed import Process
from utils.runs.vis_decoder import load_decoder, to_picture
from utils.runs.vis_recon import SavedFeatures, draw_reconstructions, recon_classes

TOOL = tiny.ROOT / "tools" / "vis_recon.py"
SECTIONS = ("data", "saver", "net")
SIZE, SHAPE = 64, (80, 4, 4)
BAR = SIZE // 11  # the label above a panel

CONFIG = (
    """
data:
  dataset_dir: data
  feature_dir: features
  input_size: [64, 64]
  pixel_mean: [0.485, 0.456, 0.406]
  pixel_std: [0.229, 0.224, 0.225]
saver: {load_path: "decoders/{class_name}.pth.tar", save_dir: pictures, log_dir: log}
"""
    + NET
)
UNIAD = ["net.neck.kwargs.outstrides=[16]", "net.reconstruction.kwargs.save_recon.save_dir=features"]


def save_network(path: Path, to: str, *overrides: str, class_name: str | None = None) -> None:
    """A checkpoint of the configuration's network. Weights depend on their names only, so all checkpoints share a backbone."""
    network = golden_weights(build_network(load_config(path, overrides, class_name=class_name).net))
    if isinstance(network.reconstruction, VisDecoder):
        with torch.no_grad():  # features of such a backbone are small: draw them with contrast
            for conv in (network.reconstruction.layer4[0].conv1, network.reconstruction.layer4[0].shortcut[0]):
                conv.weight *= 30
    save_checkpoint(path.parent / to, {"epoch": 1, "state_dict": network_state(network)})


@pytest.fixture
def path(tmp_path: Path, evaluated: Path) -> Path:
    """tests.helpers.tiny's data, a decoder of cup, and the configuration that draws with it."""
    path = tiny.make(tmp_path)
    path.write_text(CONFIG)
    (tmp_path / "decoders").symlink_to(evaluated.parent / "decoders", target_is_directory=True)
    return path


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """The configuration after an evaluation of UniAD that saved its features, and after drawing them."""
    folder = tmp_path_factory.mktemp("evaluated")
    uniad = tiny.make(folder).rename(folder / "uniad.yaml")
    save_network(uniad, "checkpoints/ckpt.pth.tar", *UNIAD)
    tiny.evaluate(uniad, *UNIAD)
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    save_network(path, "decoders/cup.pth.tar", class_name="cup")
    draw(path)
    return path


def load(path: Path, *overrides: str, clsname: str = "cup"):
    return load_config(path, overrides, SECTIONS, clsname)


def draw(path: Path, *overrides: str, clsname: str = "cup") -> Path:
    """Draw in this process; returns the class's folder of pictures."""
    with one_thread():
        draw_reconstructions(load(path, *overrides, clsname=clsname), Process(), clsname)
    return path.parent / "pictures" / clsname


def save_features(path: Path, name: str, features: np.ndarray) -> None:
    file = path.parent / "features/cup" / f"{name}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, features)


def random_features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def panels(picture: Path) -> dict[str, np.ndarray]:
    """The four drawings in a picture, without their labels."""
    pixels = read(picture)
    assert pixels.shape == (2 * (BAR + SIZE), 2 * SIZE, 3)
    (image, heat), (reconstruction, original) = (np.split(row[BAR:], 2, axis=1) for row in np.split(pixels, 2, axis=0))
    return {"image": image, "map": heat, "reconstruction": reconstruction, "input": original}


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """The same picture except for JPEG artefacts, which stay within blocks of 8x8 pixels."""
    difference = np.broadcast_to(one.astype(float) - other, one.shape)
    return np.abs(cv2.resize(difference, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)).mean() < 4


# --- pictures ---


def test_every_image_of_the_class_that_was_evaluated_is_drawn(evaluated: Path) -> None:
    expected = {"cup/good/000", "cup/good/001", "cup/hole/000", "cup/hole/001", "cup/hole/002"}
    assert files(evaluated.parent / "pictures") == {f"{name}.jpg" for name in expected}
    assert files(evaluated.parent / "features/cup") == {f"{name.removeprefix('cup/')}.npy" for name in expected}


def test_the_panels_are_the_image_and_both_features_as_the_decoder_draws_them(evaluated: Path) -> None:
    config = load(evaluated)
    network = load_decoder(config, Process())
    data = SavedFeatures(config, "cup")
    for sample in (data[0], data[4]):
        with torch.no_grad():
            outputs = network({"image": sample["image"][None]})
            reconstruction = network.reconstruction({"feature_align": sample["feature_rec"][None]})["image_rec"]
        shown = panels(evaluated.parent / "pictures" / f"{sample['name']}.jpg")
        images = {"image": outputs["image"], "input": outputs["image_rec"], "reconstruction": reconstruction}
        expected = {key: to_picture(image[0], config.data.pixel_mean, config.data.pixel_std) for key, image in images.items()}
        for key, picture in expected.items():
            assert alike(shown[key], picture), (sample["name"], key)
        assert not alike(expected["input"], expected["reconstruction"])


def test_a_picture_does_not_depend_on_those_drawn_with_it(evaluated: Path, path: Path) -> None:
    """Batch statistics do not enter a picture."""
    name = "hole/001"
    save_features(path, name, np.load(evaluated.parent / f"features/cup/{name}.npy"))
    alone, together = (panels(folder / f"{name}.jpg") for folder in (draw(path), evaluated.parent / "pictures/cup"))
    for key in ("image", "reconstruction", "input"):
        assert alike(alone[key], together[key]), key


def test_where_nothing_was_changed_both_drawings_agree_and_the_map_is_cold(path: Path) -> None:
    """All images share a scale: one with unchanged features stays cold beside one with a changed place."""
    data, last = path.parent / "data/cup", "train/good/004"
    (data / f"{last}.png").write_bytes((data / "test/good/000.png").read_bytes())
    save_features(path, "good/000", random_features())
    config = load(path)
    with torch.no_grad():
        outputs = load_decoder(config, Process())({"image": SavedFeatures(config, "cup")[0]["image"][None]})
    features = outputs["feature_align"][0].numpy()
    for name in ("good/000", *(f"train/good/00{i}" for i in range(4)), *(f"hole/00{i}" for i in range(3))):
        save_features(path, name, features)
    features[:, 0, 0] += 10 * np.abs(features).max()
    save_features(path, last, features)  # the ninth, drawn after the first eight
    pictures = draw(path)
    same, other = panels(pictures / "good/000.jpg"), panels(pictures / f"{last}.jpg")
    assert alike(same["input"], same["reconstruction"])
    cold, hot = np.array((0, 0, 128)) / 2, np.array((128, 0, 0)) / 2  # RGB, half over the image
    assert alike(same["map"], same["image"] / 2 + cold)
    slightly = panels(pictures / "hole/000.jpg")  # another image's features: a difference that is small on this scale
    assert alike(slightly["map"], slightly["image"] / 2 + cold)
    assert alike(other["map"][40:, 40:], other["image"][40:, 40:] / 2 + cold)
    tint = (other["map"] - other["image"] / 2)[:4, :4].mean(axis=(0, 1))
    assert np.abs(tint - hot).sum() < np.abs(tint - cold).sum()


# --- which image ---

LISTED = {  # image: its colour, RGB
    "cup/test/good/a.jpg": (250, 0, 0),
    "cup/test/hole/left/deep/b.bmp": (0, 250, 0),
    "cup/test/hole/c.d.PNG": (0, 0, 250),
    "cup/test/hole/twice.png": (250, 250, 0),
    "cup/test/hole/twice.tif": (0, 250, 250),
    "elsewhere/e.jpeg": (250, 0, 250),
}


def test_images_of_any_format_are_found_in_nested_folders(path: Path) -> None:
    for (name, colour), saved in zip(LISTED.items(), feature_names(list(LISTED), ["cup"] * len(LISTED)), strict=True):
        tiny.save_image(path.parent / "data" / name, np.full((32, 48, 3), colour[::-1], np.uint8))
        save_features(path, str(saved.relative_to("cup")), random_features())
    pictures = draw(path)
    drawn = {
        "good/a.jpg": "cup/test/good/a.jpg",
        "hole/left/deep/b.jpg": "cup/test/hole/left/deep/b.bmp",
        "hole/c.d.jpg": "cup/test/hole/c.d.PNG",
        "hole/twice.png.jpg": "cup/test/hole/twice.png",
        "hole/twice.tif.jpg": "cup/test/hole/twice.tif",
        "elsewhere/e.jpg": "elsewhere/e.jpeg",
    }
    assert files(pictures) == set(drawn)
    for picture, name in drawn.items():
        assert alike(panels(pictures / picture)["image"], np.array(LISTED[name])), name


def test_linked_folders_are_searched_and_one_that_leads_back_ends(path: Path) -> None:
    data = path.parent / "data"
    (data / "cup").rename(path.parent / "moved")
    (data / "cup").symlink_to(path.parent / "moved", target_is_directory=True)
    (data / "cup/test/good/back").symlink_to(data, target_is_directory=True)
    save_features(path, "good/001", random_features())
    assert files(draw(path)) == {"good/001.jpg"}


@pytest.fixture
def warnings(caplog, monkeypatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("uniad"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_features_without_an_image_are_left_out_with_a_warning(path: Path, warnings) -> None:
    for name in ("good/000", "good/absent", "good/lost"):
        save_features(path, name, random_features())
    assert files(draw(path)) == {"good/000.jpg"}
    (line,) = warnings()
    assert "2 of 3" in line
    assert "cup/good/absent.npy" in line
    assert str(path.parent / "data") in line


def test_of_two_images_that_features_may_be_of_none_is_drawn(path: Path, warnings) -> None:
    """000 was evaluated when there was one of that name; now there are two."""
    tiny.save_image(path.parent / "data/cup/test/good/000.jpg", np.zeros((8, 8, 3), np.uint8))
    for name in ("good/000", "good/001"):
        save_features(path, name, random_features())
    assert files(draw(path)) == {"good/001.jpg"}
    assert "cup/good/000.npy" in warnings()[0]


# --- errors ---


def spoil(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.parent / "features/cup/good/001.npy").write_bytes(content)


def save_second(features: np.ndarray) -> Callable[[Path], None]:
    return lambda path: save_features(path, "good/001", features)


def remove_features(path: Path) -> None:
    for file in (path.parent / "features").rglob("*.npy"):
        file.unlink()


def list_only_absent(path: Path) -> None:
    remove_features(path)
    save_features(path, "good/absent", random_features())


def truncate(path: Path) -> None:
    file = path.parent / "features/cup/good/001.npy"
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "overrides", "message"),
    [
        (
            remove_features,
            [],
            r"no features of the class 'cup' in .*features: .* -e net\.reconstruction\.\S*save_dir=\S+features$",
        ),
        (lambda path: None, ["data.feature_dir=absent"], r"no features of the class 'cup' in .*absent: .*save_recon"),
        (lambda path: None, ["data.feature_dir=null"], r"data\.feature_dir is missing"),
        (lambda path: None, ["data.dataset_dir=absent"], r"data\.dataset_dir .*absent is not a folder"),
        (lambda path: None, ["saver.load_path=absent"], r"absent: there is no such checkpoint"),
        (list_only_absent, [], r"data \(data\.dataset_dir\) has no image.* .*features/cup; the first is cup/good/absent\.npy$"),
        (spoil(b""), [], r"good/001\.npy: damaged"),
        (spoil(b"\x93NUMPY\x01\x00v\x00{'descr': "), [], r"good/001\.npy: damaged"),
        (truncate, [], r"good/001\.npy: damaged"),
        (save_second(np.array([{}], dtype=object)), [], r"good/001\.npy: damaged"),
        (save_second(np.zeros((80, 2, 2), np.float32)), [], r"good/001\.npy: .*\(80, 2, 2\), .*\(80, 4, 4\)"),
        (save_second(np.full(SHAPE, np.nan, np.float32)), [], r"good/001\.npy: .*not finite"),
        (save_second(np.full(SHAPE, "x")), [], r"good/001\.npy: .*not finite"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_drawn(path: Path, damage, overrides: list[str], message: str) -> None:
    for name in ("good/000", "good/001"):
        save_features(path, name, random_features())
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        draw(path, *overrides)
    assert "\n" not in str(error.value)
    assert not (path.parent / "pictures").exists()


def test_a_class_without_features_is_told_those_that_have_some(path: Path) -> None:
    save_features(path, "good/000", random_features())
    with pytest.raises(UserError, match=r"'cap' in .*: there are those of cup"):
        draw(path, clsname="cap")


# --- the tool ---


def test_the_tool_says_where_the_pictures_are(evaluated: Path) -> None:
    outcome = run_tool(TOOL, evaluated, "--class_name=cup", "saver.save_dir=by tool")
    assert outcome.code == 0, outcome.stderr
    pictures = evaluated.parent / "by tool/cup"
    assert len(files(pictures)) == 5
    assert outcome.stdout.splitlines()[-1].endswith(f"5 images in {pictures}")
    assert str(pictures) in (evaluated.parent / "log/vis_recon_cup.log").read_text().splitlines()[-1]


def test_its_classes_are_those_with_features(evaluated: Path) -> None:
    (evaluated.parent / "features/empty/good").mkdir(parents=True, exist_ok=True)
    assert recon_classes(evaluated) == ["cup", "tile"]
    with pytest.raises(UserError, match=r"there are no features in .*save_recon"):
        recon_classes(evaluated, ["data.feature_dir=absent"])
