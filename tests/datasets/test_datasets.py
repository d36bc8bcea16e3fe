"""Samples and batches of a custom data set."""

import json
import logging
import os
import traceback
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.build import build_dataloader, build_dataset
from datasets.custom import CustomDataset
from datasets.images import ImageReader
from datasets.transforms import Transform
from utils.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# --- custom data set ---


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images of odd sizes, the last two defective, one of these with a mask."""
    lines = []
    for i in range(6):
        label = int(i >= 4)
        name = f"nut/{'test/bent' if label else 'train/good'}/{i}.png"
        save(tmp_path / name, noise(20 + i, 31 - i, 3))
        lines.append({"filename": name, "label": label, "clsname": "nut"})
    mask = np.zeros((25, 26), np.uint8)
    mask[3:9, 5:20] = 255
    save(tmp_path / "nut/mask.png", mask)
    lines[5]["maskname"] = "nut/mask.png"
    write_lines(tmp_path, lines)
    return tmp_path


def write_lines(folder: Path, lines: list[dict]) -> None:
    (folder / "list.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "list.json").read_text().splitlines()]


def config(folder: Path, **changes) -> dict:
    return {
        "type": "custom",
        "image_reader": {"type": "opencv", "kwargs": {"image_dir": str(folder), "color_mode": "RGB"}},
        "train": {"meta_file": str(folder / "list.json"), "hflip": True, "vflip": True, "rotate": True, "rebalance": False},
        "test": {"meta_file": str(folder / "list.json")},
        "colorjitter": {"prob": 0.5},
        "input_size": [16, 16],
        "pixel_mean": MEAN,
        "pixel_std": STD,
        "batch_size": 4,
        "workers": 0,
        **changes,
    }


def test_a_sample_is_the_documented_dict(folder):
    sample = build_dataset(config(folder), "test")[5]
    assert list(sample) == ["image", "mask", "label", "clsname", "filename", "height", "width", "index"]
    assert sample["image"].shape == (3, 16, 16)
    assert sample["mask"].shape == (1, 16, 16)
    assert sample["image"].dtype == sample["mask"].dtype == torch.float32
    assert 0 < sample["mask"].sum() < 256
    expected = {"label": 1, "clsname": "nut", "filename": "nut/test/bent/5.png", "height": 25, "width": 26, "index": 5}
    assert {key: sample[key] for key in expected} == expected


def test_a_defective_image_in_the_training_list_stops_with_its_line_or_is_skipped_and_counted(folder, caplog, monkeypatch):
    cfg = config(folder, on_defective_train="stop")
    with pytest.raises(UserError, match=r"2 defective images .*list\.json:5, nut/test/bent/4\.png; .*on_defective_train=skip"):
        build_dataset(cfg, "train")
    assert len(build_dataset(cfg, "test")) == 6
    monkeypatch.setattr(logging.getLogger("uniad"), "propagate", True)
    good = build_dataset(cfg | {"on_defective_train": "skip"}, "train")
    assert good.filenames == [f"nut/train/good/{i}.png" for i in range(4)]
    assert "skipped: 2 defective images" in caplog.text
    write_lines(folder, read_lines(folder)[4:])
    with pytest.raises(UserError, match=r"2 defective images .*no line of a good image"):
        build_dataset(cfg | {"on_defective_train": "skip"}, "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_a_list_names_twice_is_said_with_list_and_line(folder, caplog, monkeypatch, split):
    monkeypatch.setattr(logging.getLogger("uniad"), "propagate", True)
    lines = read_lines(folder)[:4]
    write_lines(folder, [*lines, lines[1], lines[2]])
    assert len(build_dataset(config(folder), split)) == 6
    said = f"2 lines name an image again, which counts once more: the first is {folder}/list.json:5, nut/train/good/1.png as in"
    assert f"{said} line 2" in caplog.text
    write_lines(folder, [*lines, lines[1] | {"label": 1}])
    with pytest.raises(UserError, match=r"list\.json:5: nut/train/good/1\.png is good in one line and defective in another, 2:"):
        build_dataset(config(folder, on_defective_train="skip"), split)


def test_samples_stand_in_the_order_of_the_lines_and_without_mask_have_an_empty_one(folder):
    lines = read_lines(folder)[::-1]
    write_lines(folder, lines)
    dataset = build_dataset(config(folder), "test")
    assert dataset.filenames == [line["filename"] for line in lines] == [sample["filename"] for sample in dataset_items(dataset)]
    assert dataset.labels == [1, 1, 0, 0, 0, 0]
    assert dataset.clsnames == ["nut"] * 6
    assert [bool(sample["mask"].any()) for sample in dataset_items(dataset)] == [True] + [False] * 5


def dataset_items(dataset: torch.utils.data.Dataset) -> list[dict]:
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("color_mode", ["RGB", "BGR", "GRAY"])
def test_the_original_picture_is_rgb_whatever_the_color_mode(folder, color_mode):
    reader = ImageReader(folder, color_mode)
    dataset = CustomDataset(folder / "list.json", reader, Transform((16, 16), MEAN, STD), training=False)
    bgr = cv2.imread(str(folder / dataset.filenames[2]))
    np.testing.assert_array_equal(dataset.read_rgb(2), bgr[..., ::-1])
    np.testing.assert_array_equal(dataset.load(2)[0], reader.read(dataset.filenames[2]))


def test_train_and_test_keys_are_merged_over_the_common_ones(folder):
    write_lines(folder, read_lines(folder))
    (folder / "short.json").write_text((folder / "list.json").read_text().splitlines()[0])
    cfg = config(folder, test={"meta_file": str(folder / "short.json"), "input_size": [8, 12], "batch_size": 1})
    train, test = build_dataset(cfg, "train"), build_dataset(cfg, "test")
    assert (len(train), len(test)) == (6, 1)
    assert train[0]["image"].shape == (3, 16, 16)
    assert test[0]["image"].shape == (3, 8, 12)
    assert (build_dataloader(train, cfg, "train").batch_size, build_dataloader(test, cfg, "test").batch_size) == (4, 1)


def test_evaluation_is_never_augmented(folder):
    cfg = config(folder, hflip=True, vflip=True, rotate=True)
    dataset = build_dataset(cfg, "test")
    for epoch in range(5):
        dataset.epoch = epoch
        expected = Transform((16, 16), MEAN, STD)(*dataset.load(5), None)
        assert torch.equal(dataset[5]["image"], expected[0])
        assert torch.equal(dataset[5]["mask"], expected[1])


def test_augmentation_is_a_function_of_seed_epoch_and_index(folder):
    def image(seed: int, epoch: int, index: int) -> bytes:
        dataset = build_dataset(config(folder), "train", seed)
        dataset.epoch = epoch
        return dataset[index]["image"].numpy().tobytes()

    assert image(1, 2, 3) == image(1, 2, 3)
    assert len({image(seed, epoch, 3) for seed in range(3) for epoch in range(3)}) > 6
    write_lines(folder, [read_lines(folder)[0]] * 6)
    assert len({image(1, 0, index) for index in range(6)}) > 3


def test_colour_jitter_knows_the_color_mode(folder):
    def image(color_mode: str) -> torch.Tensor:
        reader = {"type": "opencv", "kwargs": {"image_dir": str(folder), "color_mode": color_mode}}
        plain = {"pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1], "colorjitter": {"prob": 1}}
        return build_dataset(config(folder, image_reader=reader, **plain), "train")[0]["image"]

    assert torch.equal(image("BGR").flip(0), image("RGB"))


def test_files_that_cannot_be_used_are_named_with_list_and_folder(folder):
    for line, key, name in ((0, "filename", "nut/train/good/none.png"), (4, "maskname", "nut/no mask.png")):
        lines = read_lines(folder)
        original, lines[line][key] = lines[line].get(key), name
        write_lines(folder, lines)
        with pytest.raises(UserError) as caught:  # when the list is read, not in the middle of an epoch
            build_dataset(config(folder), "test")
        assert all(part in str(caught.value) for part in (name, f"image_dir {folder}", str(folder / "list.json")))
        assert "\n" not in str(caught.value)
        lines[line][key] = original
        write_lines(folder, lines)


def test_a_mask_of_another_size_is_named_with_both_sizes(folder):
    lines = read_lines(folder)
    lines[5]["maskname"] = lines[3]["filename"]
    write_lines(folder, lines)
    with pytest.raises(UserError) as caught:
        build_dataset(config(folder), "test")[5]
    parts = [lines[3]["filename"], lines[5]["filename"], "28 x 23", "26 x 25", str(folder / "list.json")]
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_a_missing_list_or_folder_is_named(folder):
    with pytest.raises(UserError, match=r"none\.json"):
        build_dataset(config(folder, test={"meta_file": str(folder / "none.json")}), "test")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        build_dataset(config(folder, image_reader={"type": "opencv", "kwargs": {"image_dir": str(folder / "nowhere")}}), "test")


def test_an_unknown_type_is_named(folder):
    with pytest.raises(UserError, match="'imagenet' is not one of custom, cifar10"):
        build_dataset(config(folder, type="imagenet"), "test")


@pytest.mark.parametrize("key", ["filename", "maskname"])
@pytest.mark.parametrize("kind", ["absolute", "upwards"])
def test_a_name_that_leads_outside_is_read_only_where_that_is_allowed(folder, tmp_path_factory, key, kind):
    outside = tmp_path_factory.mktemp("outside") / "a.png"
    save(outside, noise(25, 26, 3))
    lines = read_lines(folder)
    lines[5][key] = str(outside) if kind == "absolute" else f"nut/{os.path.relpath(outside, folder / 'nut')}"
    write_lines(folder, lines)
    for on_bad_image in ("stop", "skip"):
        with pytest.raises(UserError, match=r"a\.png leads out of image_dir .*allow_outside=True.*list\.json"):
            build_dataset(config(folder, on_bad_image=on_bad_image), "test")
    allowed = config(folder)
    allowed["image_reader"]["kwargs"]["allow_outside"] = True
    assert build_dataset(allowed, "test")[5]["height"] == 25


def test_an_image_that_is_too_large_costs_itself_only(folder, caplog):
    save(folder / "nut/train/good/1.png", noise(60, 60, 3))
    settings = config(folder, on_bad_image="skip", batch_size=6)
    settings["image_reader"]["kwargs"]["max_pixels"] = 1000
    (batch,) = build_dataloader(build_dataset(settings, "test"), settings, "test")
    assert [Path(name).stem for name in batch["filename"]] == ["0", "2", "3", "4", "5"]
    assert "1.png in image_dir" in caplog.text
    assert "60 x 60 pixels, more than 1,000" in caplog.text


# --- loaders ---


def batches(folder: Path, split: str, workers: int, epochs: tuple[int, ...] = (0, 1), **options) -> list[dict]:
    cfg = config(folder, workers=workers)
    dataset = build_dataset(cfg, split, seed=5)
    loader = build_dataloader(dataset, cfg, split, seed=5, **options)
    collected = []
    for epoch in epochs:
        dataset.epoch = epoch
        if split == "train":
            loader.sampler.set_epoch(epoch)
        collected += loader
    return collected


@pytest.mark.parametrize("split", ["train", "test"])
def test_batches_do_not_depend_on_the_number_of_workers(folder, split):
    without, two = (batches(folder, split, workers) for workers in (0, 2))
    assert len(without) == len(two) == 4
    for a, b in zip(without, two, strict=True):
        assert a["filename"] == b["filename"]
        for key in ("image", "mask", "label", "height", "width", "index"):
            assert torch.equal(a[key], b[key])


def test_the_last_smaller_batch_is_kept(folder):
    assert [len(batch["filename"]) for batch in batches(folder, "train", 0)] == [4, 2, 4, 2]


def test_a_later_epoch_alone_gives_what_it_gives_in_a_whole_run(folder):
    whole, alone = batches(folder, "train", 0, (0, 1, 2)), batches(folder, "train", 0, (2,))
    assert whole[-1]["filename"] == alone[-1]["filename"]
    assert torch.equal(whole[-1]["image"], alone[-1]["image"])
    assert whole[0]["filename"] + whole[1]["filename"] != whole[2]["filename"] + whole[3]["filename"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_processes_together_read_everything(folder, split):
    parts = [batches(folder, split, 0, (0,), rank=rank, world_size=2) for rank in range(2)]
    assert sorted(index for part in parts for batch in part for index in batch["index"].tolist()) == list(range(6))


def test_a_rebalanced_loader_draws_classes_equally_often(folder):
    write_lines(folder, [{**line, "clsname": f"class {line['label']}"} for line in read_lines(folder)])
    cfg = config(folder)
    cfg["train"]["rebalance"] = True
    dataset = build_dataset(cfg, "train")
    names = [name for batch in build_dataloader(dataset, cfg, "train") for name in batch["clsname"]]
    assert sorted(names) == ["class 0"] * 3 + ["class 1"] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_random_state_alone(folder, workers):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches(folder, "train", workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_its_one_line(folder, workers):
    (folder / "nut/train/good/1.png").write_text("no image")
    with pytest.raises(UserError) as caught:
        batches(folder, "test", workers)
    traceback.clear_frames(caught.tb)  # else the loader hangs in a reference cycle and takes seconds to stop its workers
    assert str(caught.value).startswith("nut/train/good/1.png in image_dir")
    assert str(caught.value).endswith("list.json)")
    assert "\n" not in str(caught.value)
