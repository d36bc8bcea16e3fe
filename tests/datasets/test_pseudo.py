"""Pseudo-anomalies: training images with an artificial defect (dataset.pseudo_anomalies)."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.base import ImageDataset
from datasets.build import build_dataloader, build_dataset
from datasets.pseudo import MIN_PIXELS, VISIBLE, paste_defect
from tests.helpers import tiny
from tests.helpers.cifar import write_cifar
from utils.config import load_config, to_plain
from utils.errors import UserError

SIZES = [(32, 32), (64, 160), (224, 224), (448, 320)]
PLAIN = {"pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1]}
NAMES = [f"{clsname}/train/good/{index:03d}.png" for clsname in ("cup", "tile") for index in range(5)]  # as listed


def texture(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth coloured patches: H x W x 3 uint8, the channels equal where only one is asked for."""
    grid = np.random.default_rng(seed).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    image = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    return np.repeat(image, 3 // channels, axis=2)


def defects(image: np.ndarray, count: int, donor: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    return [paste_defect(image, donor, np.random.default_rng([5, i])) for i in range(count)]


# --- a defect ---


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("with_donor", [False, True], ids=["itself", "donor"])
def test_the_mask_is_exactly_where_the_image_visibly_differs(size: tuple[int, int], with_donor: bool) -> None:
    image = texture(*size)
    for defective, mask in defects(image, 20, texture(*size, seed=1) if with_donor else None):
        assert defective.shape == image.shape
        assert defective.dtype == np.uint8
        difference = np.abs(defective.astype(int) - image).max(axis=2)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, difference > VISIBLE)
        assert MIN_PIXELS <= mask.sum() < mask.size / 3


def test_away_from_the_defect_nothing_changed() -> None:
    black, white = np.zeros((96, 96, 3), np.uint8), np.full((96, 96, 3), 255, np.uint8)
    for defective, mask in defects(black, 40, white):  # the softened edges, which are all that is unmarked, are dark
        near = cv2.dilate(mask.astype(np.uint8), np.ones((11, 11), np.uint8))
        assert not defective[near == 0].any()
        assert defective[mask].min() > VISIBLE


def test_the_image_and_the_donor_stay_as_they_are() -> None:
    image, donor = texture(64, 64), texture(64, 64, seed=1)
    for given in (None, donor):
        defects(image, 10, given)
    np.testing.assert_array_equal(image, texture(64, 64))
    np.testing.assert_array_equal(donor, texture(64, 64, seed=1))


def test_equal_generators_give_equal_defects_and_others_other_ones() -> None:
    first, second = (defects(texture(64, 64), 20) for _ in range(2))
    for (image, mask), (again, mask_again) in zip(first, second, strict=True):
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(mask, mask_again)
    assert len({image.tobytes() for image, _ in first}) == 20


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_areas_spread_over_orders_of_magnitude(size: tuple[int, int]) -> None:
    areas = [mask.sum() for _, mask in defects(texture(*size), 150)]
    small, middle, large = np.percentile(areas, [2, 50, 95])
    assert small < 40
    assert large > 0.015 * np.prod(size)
    assert large > 10 * small
    assert 1.5 * small < middle < large / 1.5


def test_defects_lie_everywhere() -> None:
    hits = np.sum([mask for _, mask in defects(texture(64, 64), 300)], axis=0)
    cells = hits.reshape(4, 16, 4, 16).sum(axis=(1, 3))
    assert cells.min() > 0.3 * cells.mean()


@pytest.mark.parametrize("with_donor", [False, True], ids=["itself", "donor"])
def test_gray_images_stay_gray(with_donor: bool) -> None:
    donor = texture(64, 64, seed=1, channels=1) if with_donor else None
    for defective, _ in defects(texture(64, 64, channels=1), 50, donor):
        assert (defective == defective[..., :1]).all()


def test_what_cannot_be_seen_is_not_marked() -> None:
    """A black image, filled from itself, changes only where it is brightened; it has fewer pixels than the least of a mask."""
    black = np.zeros((2, 2, 3), np.uint8)
    results = defects(black, 30)
    for defective, mask in results:
        np.testing.assert_array_equal(mask, (defective > VISIBLE).any(axis=2))
    assert {bool(mask.any()) for _, mask in results} == {False, True}


def test_mirrored_views_are_taken() -> None:
    image = texture(48, 40)
    for view in (image[:, ::-1], image[::-1], np.rot90(image)):
        defective, mask = paste_defect(view, None, np.random.default_rng(0))
        assert defective.shape == view.shape
        assert mask.any()


# --- samples ---


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


def custom(path: Path, split: str = "train", epoch: int = 0, seed: int = 3, **changes) -> ImageDataset:
    """The tiny data set with pseudo-anomalies and mirroring, unless `changes` says otherwise."""
    section = to_plain(load_config(path).dataset)
    cfg = {**section, "pseudo_anomalies": True, "hflip": True, "vflip": True, **PLAIN, **changes}
    dataset = build_dataset(cfg, split, seed)
    dataset.epoch = epoch
    return dataset


def cifar(root: Path, split: str = "train", epoch: int = 0, **changes) -> ImageDataset:
    cfg = {"type": "cifar10", "root_dir": str(root), "normals": [3, 7], "input_size": [32, 32], "pseudo_anomalies": True}
    dataset = build_dataset({**cfg, **PLAIN, **changes}, split)
    dataset.epoch = epoch
    return dataset


@pytest.fixture(params=["custom", "cifar10"])
def make(request: pytest.FixtureRequest, tmp_path: Path):
    """Makes a data set of either type: make(split, epoch, **keys of dataset)."""
    if request.param == "custom":
        path = tiny.make(tmp_path)
        return lambda *args, **changes: custom(path, *args, **changes)
    root = write_cifar(tmp_path)
    return lambda *args, **changes: cifar(root, *args, **changes)


def test_a_training_sample_has_a_copy_with_a_defect_and_its_mask(make) -> None:
    for sample in make():
        image, pseudo, mask = sample["image"], sample["pseudo"], sample["pseudo_mask"]
        assert pseudo.dtype == mask.dtype == torch.float32
        assert pseudo.shape == image.shape
        assert mask.shape == sample["mask"].shape
        differs = (255 * (pseudo - image)).abs().amax(dim=0, keepdim=True) > VISIBLE + 0.5
        assert torch.equal(mask, differs.float())
        assert mask.any()
        assert not sample["mask"].any()


def test_it_is_normalised_as_the_image(make) -> None:
    raw, normalised = make()[4], make(pixel_mean=[0.1, 0.2, 0.3], pixel_std=[0.2, 0.3, 0.4])[4]
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(normalised["pseudo"], (raw["pseudo"] - mean) / std)
    assert torch.equal(normalised["pseudo_mask"], raw["pseudo_mask"])


def test_everything_else_is_as_without_the_key(make) -> None:
    for epoch in range(3):
        for sample, plain in zip(make("train", epoch), make("train", epoch, pseudo_anomalies=False), strict=True):
            del sample["pseudo"], sample["pseudo_mask"]
            assert list(sample) == list(plain)
            for key in plain:
                equal = torch.equal if key in ("image", "mask") else lambda a, b: a == b
                assert equal(sample[key], plain[key]), key


def test_without_the_key_there_is_none(make) -> None:
    assert "pseudo" not in make(pseudo_anomalies=False)[0]


def test_the_key_may_stand_in_the_train_section(path: Path) -> None:
    train = {"meta_file": str(path.parent / "data/train.json"), "pseudo_anomalies": True}
    assert "pseudo" in custom(path, pseudo_anomalies=False, train=train)[0]


def test_there_is_none_outside_training(make) -> None:
    assert not {"pseudo", "pseudo_mask"} & set(make("test")[0])


def test_there_is_none_in_the_holdout(path: Path) -> None:
    assert not {"pseudo", "pseudo_mask"} & set(custom(path, "holdout", holdout=0.4)[0])
    assert "pseudo" in custom(path, "train", holdout=0.4)[0]


def test_a_defect_is_a_function_of_seed_epoch_and_index(path: Path) -> None:
    def change(seed: int, epoch: int, index: int) -> bytes:
        sample = custom(path, epoch=epoch, seed=seed)[index]
        return (sample["pseudo"] - sample["image"]).numpy().tobytes()

    assert change(1, 2, 3) == change(1, 2, 3)
    assert len({change(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)}) == 27


def test_workers_and_processes_do_not_change_it(path: Path) -> None:
    def read(workers: int, processes: int) -> dict[str, tuple[bytes, bytes]]:
        dataset = custom(path, epoch=1)
        cfg = {"batch_size": 2, "workers": workers}
        loaders = [build_dataloader(dataset, cfg, "train", rank, processes) for rank in range(processes)]
        return {
            name: (pseudo.numpy().tobytes(), mask.numpy().tobytes())
            for loader in loaders
            for batch in loader
            for name, pseudo, mask in zip(batch["filename"], batch["pseudo"], batch["pseudo_mask"], strict=True)
        }

    expected = read(0, 1)
    assert len(expected) == 10
    assert read(2, 1) == read(1, 2) == expected


def test_some_defects_are_filled_from_other_images(path: Path) -> None:
    """All images but one are white, and that one is black: brightened by 60 of 255 at most, it has no bright defect itself."""
    for name in NAMES:
        tiny.save_image(path.parent / "data" / name, np.full((64, 64, 3), 0 if name == NAMES[0] else 255, np.uint8))
    bright = [custom(path, epoch=epoch)[0]["pseudo"].max().item() > 61 / 255 for epoch in range(60)]
    assert 9 < sum(bright) < 27  # nine in ten of a third


# --- an image to fill it from that cannot be read ---


@pytest.fixture
def first_alone(path: Path) -> Path:
    """All training images but the first are no images."""
    for name in NAMES[1:]:
        (path.parent / "data" / name).write_bytes(b"no image")
    return path


def test_where_bad_images_are_skipped_the_image_itself_takes_its_place(first_alone: Path) -> None:
    for epoch in range(40):
        dataset = custom(first_alone, epoch=epoch, on_bad_image="skip")
        assert dataset[0]["pseudo_mask"].any()
        assert [type(item) for item in dataset.__getitems__([0])] == [dict]  # no other image is bad in its place


def test_where_bad_images_stop_the_run_so_does_a_bad_donor_with_its_name(first_alone: Path) -> None:
    with pytest.raises(UserError, match=r"(cup|tile)/train/good/\d+\.png .* is not an image .*train\.json"):
        [custom(first_alone, epoch=epoch)[0] for epoch in range(40)]
