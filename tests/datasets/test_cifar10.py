"""CIFAR-10 as normal and anomalous classes, from files in the official format."""

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.build import build_dataloader, build_dataset
from datasets.cifar10 import CIFAR10Dataset
from datasets.transforms import Transform
from tests.helpers.cifar import CLASSES, Python2Pickler, batch, python2_pickle, write_cifar
from utils.errors import UserError

TRANSFORM = Transform((16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resample="lanczos")


Python2Pickler.dispatch = {**pickle._Pickler.dispatch, bytes: Python2Pickler.save_bytes}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"))


def true_class(dataset: CIFAR10Dataset, index: int) -> int:
    return CLASSES.index(dataset.filenames[index].split("/")[0])


def test_the_files_written_here_are_like_the_official_ones():
    content = python2_pickle(batch([1, 2], 0))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content
    assert content.startswith(b"\x80\x02")


def test_training_takes_the_normal_classes_only(root):
    dataset = CIFAR10Dataset(root, [3, 7], TRANSFORM, training=True)
    assert len(dataset) == 20
    assert {true_class(dataset, i) for i in range(20)} == {3, 7}
    assert dataset.labels == [0] * 20
    assert dataset.clsnames == ["cifar"] * 20


@pytest.mark.parametrize("normals", [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 2, 4, 6, 8], [1, 3, 5, 7, 9]])
def test_five_normal_classes_are_tested_on_all_images(root, normals):
    dataset = CIFAR10Dataset(root, normals, TRANSFORM, training=False)
    assert len(dataset) == 30
    assert dataset.labels == [int(true_class(dataset, i) not in normals) for i in range(30)]
    assert [name.split("/")[1] for name in dataset.filenames] == [f"{i}.jpg" for i in range(30)]


def test_five_normal_classes_are_tested_on_all_images_even_if_these_are_uneven(tmp_path):
    write_cifar(tmp_path, test_labels=[0, 1, 2, 5, 5, 6, 7, 8])
    assert len(CIFAR10Dataset(tmp_path, [0, 1, 2, 3, 4], TRANSFORM, training=False)) == 8


def test_few_normal_classes_are_tested_on_as_many_anomalous_images_whatever_the_seed(root):
    dataset = CIFAR10Dataset(root, [4], TRANSFORM, training=False, seed=0)
    assert Counter(dataset.labels) == {0: 3, 1: 3}
    assert len(set(dataset.filenames)) == 6
    positions = [int(name.split("/")[1].removesuffix(".jpg")) for name in dataset.filenames]
    assert positions == sorted(positions)
    assert CIFAR10Dataset(root, [4], TRANSFORM, training=False, seed=1).filenames == dataset.filenames


def test_many_normal_classes_are_tested_on_all_anomalous_images(root):
    assert Counter(CIFAR10Dataset(root, list(range(9)), TRANSFORM, training=False).labels) == {0: 27, 1: 3}


def test_all_ten_classes_may_be_trained_on(root):
    assert len(CIFAR10Dataset(root, list(range(10)), TRANSFORM, training=True)) == 100


@pytest.mark.parametrize("training", [True, False])
def test_filenames_tell_class_and_position_in_the_files(root, training):
    dataset = CIFAR10Dataset(root, [2], TRANSFORM, training)
    for index, name in enumerate(dataset.filenames):
        assert name.endswith(f"/{dataset.read_rgb(index)[0, 0, 0]}.jpg")


def test_pictures_are_rows_of_red_then_green_then_blue(root):
    rows = batch([*range(10)] * 3, 0)[b"data"]
    dataset = CIFAR10Dataset(root, [0, 1, 2, 3, 4], TRANSFORM, training=False)
    picture = dataset.read_rgb(5)
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[1, 2], [rows[5, 34], rows[5, 1024 + 34], rows[5, 2048 + 34]])


def test_a_sample_is_resized_by_lanczos_and_has_no_mask(root):
    cfg = {
        "type": "cifar10",
        "root_dir": str(root),
        "normals": [0],
        "input_size": [48, 40],
        "pixel_mean": [0.5, 0.4, 0.3],
        "pixel_std": [0.2, 0.3, 0.4],
        "train": {"hflip": False},
        "test": {},
        "batch_size": 4,
        "workers": 0,
    }
    dataset = build_dataset(cfg, "test")
    sample = dataset[1]
    resized = np.asarray(Image.fromarray(dataset.read_rgb(1)).resize((40, 48), Image.Resampling.LANCZOS))
    expected = (resized / 255 - np.array(cfg["pixel_mean"])) / np.array(cfg["pixel_std"])
    np.testing.assert_allclose(sample["image"].permute(1, 2, 0), expected, atol=1e-5)
    assert torch.equal(sample["mask"], torch.zeros(1, 48, 40))
    assert {key: sample[key] for key in ("clsname", "height", "width", "index")} == {
        "clsname": "cifar",
        "height": 32,
        "width": 32,
        "index": 1,
    }
    assert [len(b["filename"]) for b in build_dataloader(dataset, cfg, "test")] == [4, 2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_copies_written_by_python_3_are_read_too(tmp_path, root, protocol):
    write_cifar(tmp_path, dump=lambda content: pickle.dumps(content, protocol))
    ours, official = (CIFAR10Dataset(path, [1, 2], TRANSFORM, training=True) for path in (tmp_path, root))
    assert ours.filenames == official.filenames
    np.testing.assert_array_equal(ours.images, official.images)


class Hostile:
    """A pickle of it runs `function(argument)` when an ordinary unpickler reads it."""

    def __init__(self, function, argument) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("name", ["batches.meta", "test_batch"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_file_runs_nothing_and_is_named_with_what_it_asked_for(tmp_path, name, protocol):
    path = write_cifar(tmp_path) / "cifar-10-batches-py" / name
    evidence = tmp_path / "evidence"
    path.write_bytes(pickle.dumps({b"data": Hostile(os.system, f"touch {evidence}")}, protocol))
    with pytest.raises(UserError) as caught:
        CIFAR10Dataset(tmp_path, [0], TRANSFORM, training=False)
    assert str(path) in str(caught.value)
    assert f"{os.system.__module__}.system" in str(caught.value)
    assert not evidence.exists()


@pytest.mark.parametrize("function", [eval, np.fromfile, np.save, getattr])
def test_only_the_names_of_the_official_files_are_accepted(tmp_path, function):
    path = write_cifar(tmp_path) / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(Hostile(function, "1"), 2))
    with pytest.raises(UserError, match="refused"):
        CIFAR10Dataset(tmp_path, [0], TRANSFORM, training=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle at all",
        pickle.dumps([1, 2]),
        pickle.dumps({}),
        python2_pickle(batch([1, 2], 0))[:-2000],
        python2_pickle({**batch([1, 2], 0), b"labels": [1, 2, 3]}),
        python2_pickle({**batch([1, 2], 0), b"labels": [1, 10]}),
        python2_pickle({**batch([1, 2], 0), b"labels": [1, [2]]}),
        python2_pickle({**batch([1, 2], 0), b"data": np.zeros((2, 3072))}),
        python2_pickle({**batch([1, 2], 0), b"data": np.zeros((2, 100), np.uint8)}),
    ],
    ids=["empty", "foreign", "no dict", "no keys", "truncated", "labels", "class 10", "nested", "floats", "small"],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, content):
    path = write_cifar(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        CIFAR10Dataset(tmp_path, [0], TRANSFORM, training=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_names_are_required(tmp_path):
    path = write_cifar(tmp_path) / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(python2_pickle({b"label_names": [b"airplane"]}))
    with pytest.raises(UserError, match="label_names"):
        CIFAR10Dataset(tmp_path, [0], TRANSFORM, training=True)


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        CIFAR10Dataset(tmp_path / "nowhere", [0], TRANSFORM, training=True)
    (write_cifar(tmp_path) / "cifar-10-batches-py" / "data_batch_5").unlink()
    with pytest.raises(UserError, match="data_batch_5"):
        CIFAR10Dataset(tmp_path, [0], TRANSFORM, training=True)


@pytest.mark.parametrize("normals", [[], [10], [-1], ["cat"]])
def test_impossible_normal_classes_are_named(root, normals):
    with pytest.raises(UserError, match="normals"):
        CIFAR10Dataset(root, normals, TRANSFORM, training=True)


def test_all_ten_classes_as_normal_leave_nothing_to_test(root):
    with pytest.raises(UserError, match="normals"):
        CIFAR10Dataset(root, list(range(10)), TRANSFORM, training=False)


def test_normal_classes_without_an_image_are_named(tmp_path):
    write_cifar(tmp_path, test_labels=[0, 1])
    with pytest.raises(UserError, match=r"\[2\]"):
        CIFAR10Dataset(tmp_path, [2], TRANSFORM, training=False)
