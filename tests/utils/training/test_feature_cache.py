"""The cache of frozen features: the same as without one, computed again when anything changes, or none."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datasets.build import build_dataloader
from datasets.cached import FeatureDataset
from datasets.cifar10 import CIFAR10Dataset
from models.losses import Criterion
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.feature_runs import FILES, Run, touch
from tests.helpers.started_runs import result
from utils.errors import UserError
from utils.process.distributed import Process
from utils.training import trainer
from utils.training.feature_cache import cached, hold_features


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Its `messages` are what was logged."""
    caplog.set_level("INFO", "uniad")
    return caplog


# --- the same features ---


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_is_as_without_a_cache_bit_for_bit(path: Path, split: str, workers: int) -> None:
    run = Run(path, f"dataset.workers={workers}")
    images = run.images(split)
    data = run.open(split)
    assert isinstance(data, FeatureDataset)
    assert torch.equal(run.features(data), run.features(images))
    for image, sample in zip(images, data, strict=True):
        features = sample.pop("feature_align")
        assert (features.dtype, features.shape) == (torch.float32, (16 + 24 + 40, 8, 8))
        mask, original = sample.pop("mask"), image.pop("mask")
        assert (mask.dtype, mask.shape, torch.equal(mask, original)) == (torch.float32, (1, 64, 64), True)
        del image["image"]
        assert sample == image
    assert (data.filenames, data.labels, data.clsnames) == (images.filenames, images.labels, images.clsnames)
    assert np.array_equal(data.read_rgb(3), images.read_rgb(3))


def test_masks_and_sizes_of_any_shape_are_kept(path: Path) -> None:
    folder = path.parent / "data"
    for name in ("cup/test/hole/001.png", "cup/ground_truth/hole/001_mask.png"):
        tiny.save_image(folder / name, cv2.resize(cv2.imread(str(folder / name)), (90, 30)))
    run = Run(path, "dataset.input_size=[24, 40]")
    images, data = run.images("test"), run.open("test")
    for image, sample in zip(images, data, strict=True):
        assert torch.equal(sample["mask"], image["mask"])
        assert (sample["height"], sample["width"]) == (image["height"], image["width"])
    assert (30, 90) in [(sample["height"], sample["width"]) for sample in data]
    assert torch.equal(run.features(data), run.features(images))


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_the_bytes_are_near(path: Path, dtype: str, bits: int) -> None:
    run = Run(path, dtype=dtype)
    exact, data = run.features(run.images("train")), run.open()
    near = run.features(data)
    assert near.dtype == torch.float32
    assert torch.equal(near, exact.to(getattr(torch, dtype)).float())
    torch.testing.assert_close(near, exact, rtol=2.0**-bits, atol=1e-6)
    (folder,) = run.folders()
    assert (folder / "features.bin").stat().st_size == exact.numel() * 2


def test_features_that_the_dtype_cannot_hold_are_an_error(path: Path) -> None:
    run = Run(path, dtype="float16")
    run.network.backbone._blocks[0]._bn2.weight.data.mul_(1e9)
    with pytest.raises(UserError, match=r"cup/train/good/000\.png: its features are not finite as float16"):
        run.open()
    assert run.folders() == []


def test_a_training_step_has_the_loss_and_gradients_of_one_on_images(path: Path) -> None:
    run = Run(path)
    criterion = Criterion(run.cfg["criterion"])
    results = []
    for data in (run.images("train"), run.open()):
        batch = next(iter(build_dataloader(data, run.cfg["dataset"], "train", seed=5)))
        run.network.train()
        torch.manual_seed(3)  # of dropout and feature jittering
        loss = criterion(run.network(batch))
        run.network.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in run.network.parameters() if p.grad is not None)])
    assert len(results[0]) > 10
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("reconstruction", "dtype", "runs"), [("UniAD", "float32", [1, 2]), ("Dinomaly", "float16", [2])])
def test_features_that_are_held_on_a_device_train_the_same_weights(
    tmp_path: Path,
    reconstruction: str,
    dtype: str,
    runs: list[int],
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    """Also after a resume, and of an image that could not be read the next one takes the place."""
    overrides = (*tiny.RECONSTRUCTIONS[reconstruction], f"dataset.feature_cache.dtype={dtype}", "dataset.on_bad_image=skip")
    contents = []
    for holds, epochs in ((False, [2]), (True, runs)):
        monkeypatch.setattr(trainer, "hold_features", lambda data, device, holds=holds: data.hold(device) if holds else None)
        path = tiny.make(tmp_path / str(holds))
        (path.parent / "data/cup/train/good/001.png").write_bytes(b"no image")
        for number in epochs:
            tiny.train(path, *overrides, f"trainer.max_epoch={number}", "saver.auto_resume=True")
        contents.append(result(path))
    assert_same(*contents)
    assert "skipped" in log.text


@pytest.mark.parametrize(("free", "held"), [(409_600, True), (409_599, False)])
def test_features_are_held_on_a_gpu_where_they_take_at_most_half_of_what_is_free(
    path: Path, free: int, held: bool, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    run = Run(path)
    data, devices, gpu = run.open(), [], torch.device("cuda", 0)
    assert data.rows.all_on(torch.device("cpu")).nbytes == 204_800
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(FeatureDataset, "hold", lambda data, device: devices.append(device))
    for device in (torch.device("cpu"), gpu):
        hold_features(data, device)
    hold_features(run.images("train"), gpu)
    assert devices == [gpu] * held
    assert ("are more than half of what is free on the GPU" in log.text) == (not held)


def test_it_is_pickled_without_its_content(path: Path) -> None:
    data = Run(path).open()
    first = data[0]["feature_align"]
    assert len(pickle.dumps(data)) < 20_000  # with its files open
    assert torch.equal(pickle.loads(pickle.dumps(data))[0]["feature_align"], first)


def test_it_works_for_cifar10_by_its_files_and_chosen_images(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    batch = {"data": pixels, "labels": [index % 10 for index in range(20)]}
    for name, content in {"batches.meta": {"label_names": list("abcdefghij")}, "test_batch": batch}.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    path = tiny.make(tmp_path)
    run = Run(path)
    section = run.cfg["dataset"]
    section.update(type="cifar10", root_dir=str(tmp_path), image_reader=None, normals=[0, 1])
    data = run.open("test")
    assert isinstance(data.data, CIFAR10Dataset)
    assert torch.equal(run.features(data), run.features(run.images("test")))
    section["normals"] = [2, 3]
    assert torch.equal(run.features(run.open("test")), run.features(run.images("test")))
    assert len(run.folders()) == 2


# --- read or built again ---


def test_the_second_use_reads_and_runs_no_backbone(path: Path, log: pytest.LogCaptureFixture) -> None:
    first, second = Run(path), Run(path)
    built = first.open()
    assert first.computed == 10
    read = second.open()
    loader = build_dataloader(read, second.cfg["dataset"], "train")
    assert sum(len(second.network(batch)["feature_rec"]) for batch in loader) == 10
    assert second.computed == 0
    assert torch.equal(first.features(built), second.features(read))
    (folder,) = first.folders()
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert folder.name.startswith("train-")
    size = sum((folder / name).stat().st_size for name in FILES if name != "key.json") / 1e6
    seconds = log.messages[0].split("built in ")[1].split(" s:")[0]
    assert log.messages == [
        f"feature cache: 10 training images, {size:.1f} MB, built in {seconds} s: {folder}",
        f"feature cache: 10 training images, {size:.1f} MB, read from {folder}",
    ]


def swap_lines(path: Path) -> None:
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([second, first, *rest]))


def paint(path: Path) -> None:
    """Another picture, with the time of the old one kept but for a nanosecond."""
    status = path.stat()
    tiny.save_image(path, 255 - cv2.imread(str(path)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES: dict[str, Any] = {
    "image touched": lambda data: touch(data / "tile/test/good/001.png"),
    "image changed": lambda data: paint(data / "cup/test/good/000.png"),
    "mask touched": lambda data: touch(data / "cup/ground_truth/hole/002_mask.png"),
    "order of the list": lambda data: swap_lines(data / "test.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_is_computed_again(path: Path, change: str) -> None:
    Run(path).open("test")
    CHANGES[change](path.parent / "data")
    run = Run(path)
    data, images = run.open("test"), run.images("test")
    assert run.computed == len(images) == 9
    assert torch.equal(run.features(data), run.features(images))
    assert data.filenames == images.filenames
    assert all(torch.equal(sample["mask"], image["mask"]) for sample, image in zip(data, images, strict=True))


def test_a_mask_that_the_list_gives_to_another_image_is_read_again(path: Path) -> None:
    lines = path.parent / "data/test.json"
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    first, second = [record for record in records if "maskname" in record][:2]
    mask = first["maskname"]
    for owner, other in ((first, second), (second, first)):  # files and their order are the same both times
        owner["maskname"] = mask
        other.pop("maskname")
        lines.write_text("".join(json.dumps(record) + "\n" for record in records))
        run = Run(path)
        data, images = run.open("test"), run.images("test")
        assert all(torch.equal(sample["mask"], image["mask"]) for sample, image in zip(data, images, strict=True))


SETTINGS = {
    "input_size": ["dataset.input_size=[48, 64]"],
    "mean": ["dataset.pixel_mean=[0.4, 0.4, 0.4]"],
    "deviation": ["dataset.test.pixel_std=[0.2, 0.2, 0.2]"],
    "color_mode": ["dataset.image_reader.kwargs.color_mode=BGR"],
    "layers": ["net.backbone.kwargs.outlayers=[2, 3]"],
    "stride": ["net.neck.kwargs.outstrides=[4]"],
    "backbone": ["net.backbone.type=models.backbones.efficientnet_lite1"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_setting_has_a_cache_of_its_own(path: Path, setting: str) -> None:
    Run(path).open("test")
    run = Run(path, *SETTINGS[setting])
    data = run.open("test")
    assert run.computed == 9
    assert torch.equal(run.features(data), run.features(run.images("test")))
    again = Run(path)
    again.open("test")
    assert again.computed == 0  # the first is still there


@pytest.mark.parametrize("name", ["_conv_stem.weight", "_bn0.running_mean"])
def test_other_weights_have_a_cache_of_their_own(path: Path, name: str) -> None:
    Run(path).open()
    run = Run(path)
    run.network.backbone.state_dict()[name].view(-1)[0] += 0.1
    data = run.open()
    assert run.computed == 10
    assert torch.equal(run.features(data), run.features(run.images("train")))


def test_the_reconstruction_and_where_weights_came_from_do_not_matter(path: Path) -> None:
    first = Run(path)
    first.open()
    run = Run(path, "net.reconstruction.kwargs.hidden_dim=32", "dataset.batch_size=3", "net.backbone.kwargs.pretrained=True")
    run.network.backbone.load_state_dict(first.network.backbone.state_dict())
    run.open()
    assert run.computed == 0


# --- no cache ---


@pytest.mark.parametrize("augmentation", ["hflip=True", "vflip=True", "rotate=True", "colorjitter={brightness: 0.1}"])
def test_augmentation_turns_it_off_for_training_only(path: Path, log: pytest.LogCaptureFixture, augmentation: str) -> None:
    run = Run(path, f"dataset.{augmentation}")
    images = run.images("train")
    kept = cached(images, run.network, run.cfg, Process(), "train")
    assert not isinstance(kept, FeatureDataset)
    name = augmentation.split("=")[0]
    assert log.messages[0] == f"feature cache: off for the training images: augmentation ({name}) changes them every epoch"
    assert log.messages[1].startswith("image cache: 10 training images, 0.1 MB, built in")
    assert_same([kept[index] for index in range(10)], [images[index] for index in range(10)])
    assert isinstance(run.open("test"), FeatureDataset)


def test_a_trained_backbone_turns_it_off(path: Path, log: pytest.LogCaptureFixture) -> None:
    run = Run(path, "frozen_layers=[]")
    assert not isinstance(run.open(), FeatureDataset)
    assert log.messages[0] == "feature cache: off for the training images: the backbone is trained (see frozen_layers)"


def test_decoded_images_are_read_once_and_a_changed_one_again(path: Path, log: pytest.LogCaptureFixture) -> None:
    run, image = Run(path, "dataset.hflip=True"), path.parent / "data/cup/train/good/000.png"
    wanted = run.images("train")[0]
    first = cached(run.images("train"), run.network, run.cfg, Process(), "train")
    image.unlink()
    assert_same(pickle.loads(pickle.dumps(first))[0], wanted)
    image.write_bytes(image.with_name("001.png").read_bytes())
    again = cached(run.images("train"), run.network, run.cfg, Process(), "train")
    assert not torch.equal(again[0]["image"], wanted["image"])
    assert sum("built" in message for message in log.messages) == 2


def test_off_is_off_without_a_word(path: Path, log: pytest.LogCaptureFixture) -> None:
    run = Run(path)
    run.cfg["dataset"]["feature_cache"]["mode"] = "off"
    assert not isinstance(run.open(), FeatureDataset)
    assert log.messages == []
    assert not run.dir.exists()
