"""The embedded demo set: what tools/make_demo_data.py promises of its folder, its pictures and its difficulty."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import datasets.demo.build as build
from datasets.demo.build import CLASSES, SMALLEST, VISIBLE, Item, build_demo, changed_pixels, draw_item, items, render
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FEW = {"train": 1, "good": 4, "defective": 6}  # images a class: enough for every kind and for a rough AUROC
TINY = {"train": 1, "good": 1, "defective": 3}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    assert build_demo(folder, seed=0, **FEW)
    return folder


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture is not None, path
    return picture


def records(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def one_of_each_kind() -> list[Item]:
    return [Item(clsname, "test", kind, 0, 2) for clsname, (_, kinds) in CLASSES.items() for kind in kinds]


# --- what is in it ---


def test_the_full_set_has_40_training_15_good_and_25_defective_images_of_each_of_seven_classes():
    counts = Counter((item.clsname, item.split, item.kind == "good") for item in items())
    assert len(CLASSES) == 7
    assert all(2 <= len(kinds) <= 3 for _, kinds in CLASSES.values())
    for clsname in CLASSES:
        expected = {(clsname, "train", True): 40, (clsname, "test", True): 15, (clsname, "test", False): 25}
        assert {key: count for key, count in counts.items() if key[0] == clsname} == expected


def test_files_lie_in_mvtec_layout(demo: Path):
    expected = {"train.json", "test.json", "made_by.json"}
    for clsname, (_, kinds) in CLASSES.items():
        expected |= {f"{clsname}/train/good/000.png"}
        expected |= {f"{clsname}/test/good/{index:03d}.png" for index in range(4)}
        for kind in kinds:
            expected |= {f"{clsname}/test/{kind}/{index:03d}.png" for index in range(2)}
            expected |= {f"{clsname}/ground_truth/{kind}/{index:03d}_mask.png" for index in range(2)}
    assert {path.relative_to(demo).as_posix() for path in demo.rglob("*") if path.is_file()} == expected


def test_images_are_256_pixels_square_in_colour_and_masks_hold_0_and_255(demo: Path):
    pictures, masks = sorted(demo.glob("*/t*/*/*.png")), sorted(demo.glob("*/ground_truth/*/*.png"))
    assert len(pictures) > len(masks) > len(CLASSES)
    for path in pictures:
        picture = read(path)
        assert picture.shape == (256, 256, 3)
        assert picture.dtype == np.uint8
    for path in masks:
        mask = read(path)
        assert mask.shape == (256, 256)
        assert set(np.unique(mask)) == {0, 255}


def test_lists_name_every_image_once_and_only_files_that_exist(demo: Path):
    train, test = records(demo, "train.json"), records(demo, "test.json")
    named = [record["filename"] for record in train + test]
    assert sorted(named) == sorted(path.relative_to(demo).as_posix() for path in demo.glob("*/t*/*/*.png"))
    assert all("/train/good/" in record["filename"] for record in train)
    for record in train + test:
        good = "/good/" in record["filename"]
        assert record["clsname"] == record["filename"].split("/")[0]
        assert (record["label"], record["label_name"]) == ((0, "good") if good else (1, "defective"))
        assert ("maskname" in record) == (not good)
        if not good:
            assert (demo / record["maskname"]).is_file()


# --- pictures and masks ---


def test_the_same_seed_gives_the_same_pixels_whatever_was_drawn_before(demo: Path):
    for clsname, (_, kinds) in reversed(CLASSES.items()):
        item = Item(clsname, "test", kinds[-1], 1, 2)
        image, mask = draw_item(item, seed=0)
        np.testing.assert_array_equal(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), read(demo / item.filename))
        np.testing.assert_array_equal(mask * np.uint8(255), read(demo / item.maskname))


@pytest.mark.parametrize("clsname", CLASSES)
def test_another_seed_split_or_number_gives_another_picture(clsname: str):
    first = Item(clsname, "train", "good", 0, 40)
    others = [(first, 1), (Item(clsname, "test", "good", 0, 15), 0), (Item(clsname, "train", "good", 1, 40), 0)]
    image, _ = draw_item(first, seed=0)
    for item, seed in others:
        assert np.abs(draw_item(item, seed)[0].astype(int) - image).mean() > 2


@pytest.mark.parametrize("item", one_of_each_kind(), ids=lambda item: f"{item.clsname}-{item.kind}")
def test_a_mask_is_where_the_image_differs_from_its_clean_render(item: Item, demo: Path):
    flawed, clean = render(item, seed=0)
    image, mask = cv2.cvtColor(read(demo / item.filename), cv2.COLOR_BGR2RGB), read(demo / item.maskname) > 0
    changed = np.abs(flawed - clean).max(axis=2) > VISIBLE
    assert mask.sum() >= SMALLEST
    assert not (changed & ~mask).any()
    near = cv2.dilate(changed.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert not (mask & ~near).any()
    # The finished image is that render with nothing but noise added.
    noise = image / 255 - flawed
    assert np.abs(noise).max() < 0.06
    assert abs(noise.mean()) < 0.002


def test_a_good_image_has_no_mask_and_no_defect():
    item = Item("nut", "test", "good", 0, 15)
    flawed, clean = render(item, seed=0)
    assert draw_item(item, seed=0)[1] is None
    assert not changed_pixels(flawed, clean).any()


def test_defects_of_a_kind_go_from_subtle_to_plain():
    def visibility(item: Item) -> float:
        flawed, clean = render(item, seed=0)
        return float(np.abs(flawed - clean).sum())

    for clsname, kind in [("brick", "crack"), ("cable", "strands"), ("circuit", "solder"), ("nut", "rust"), ("gravel", "chip")]:
        assert visibility(Item(clsname, "test", kind, 8, 9)) > visibility(Item(clsname, "test", kind, 0, 9))


def test_brightness_does_not_give_the_defects_away(demo: Path):
    """Of pixels; test_demo_difficulty looks at whole images, for which there are too few here."""
    test = records(demo, "test.json")
    scores = []
    for clsname in CLASSES:
        chosen = [record for record in test if record["clsname"] == clsname]
        grey = np.stack([read(demo / record["filename"]).mean(axis=2) for record in chosen])
        masks = [read(demo / r["maskname"]) > 0 if "maskname" in r else np.zeros((256, 256), bool) for r in chosen]
        scores.append(roc_auc_score(np.stack(masks)[:, ::2, ::2].ravel(), grey[:, ::2, ::2].ravel()))
    assert np.mean(scores) < 0.75
    assert np.mean(np.abs(np.array(scores) - 0.5)) < 0.25  # dark defects count as well as bright ones


# --- the folder as a whole ---


def test_a_complete_set_of_the_same_seed_is_left_alone(demo: Path):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert not build_demo(demo, seed=0, **FEW)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_a_set_of_another_seed_is_an_error_that_says_what_to_do(demo: Path):
    with pytest.raises(UserError, match=r"seed 1: remove it, or give another --out"):
        build_demo(demo, seed=1, **FEW)


@pytest.mark.parametrize("spoil", ["an image is missing", "made_by.json is missing", "made_by.json is no JSON"])
def test_a_set_that_is_not_whole_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str):
    monkeypatch.setattr(build, "CLASSES", {"brick": CLASSES["brick"]})
    build_demo(tmp_path / "set", **TINY)
    if spoil == "an image is missing":
        (tmp_path / "set/brick/train/good/000.png").unlink()
    elif spoil == "made_by.json is missing":
        (tmp_path / "set/made_by.json").unlink()
    else:
        (tmp_path / "set/made_by.json").write_text("{")
    with pytest.raises(UserError, match="remove it, or give another --out"):
        build_demo(tmp_path / "set", **TINY)


def test_somebody_elses_folder_is_an_error_and_stays_as_it_is(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="remove it, or give another --out"):
        build_demo(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "CLASSES", {"gravel": CLASSES["gravel"]})
    (tmp_path / "set").mkdir()
    assert build_demo(tmp_path / "set", **TINY)
    assert len(records(tmp_path / "set", "test.json")) == 4


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(rng: np.random.Generator, flaw: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "CLASSES", {"brick": CLASSES["brick"], "nut": (interrupt, ("chip",))})
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path / "set", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_of_a_foreign_folder_in_one_line(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, str(ROOT / "tools" / "make_demo_data.py"), "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr


def test_a_negative_seed_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="seed is -1"):
        build_demo(tmp_path / "set", seed=-1, **TINY)
