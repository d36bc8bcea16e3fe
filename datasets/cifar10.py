"""CIFAR-10 with some classes as normal and the others as anomalous."""

import pickle
from pathlib import Path

import numpy as np

from datasets.base import ImageDataset, describe_file
from datasets.transforms import Transform
from utils.errors import UserError

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = [f"data_batch_{i}" for i in range(1, 6)]
TEST_FILES = ["test_batch"]
NUM_CLASSES = 10
TEST_SEED = 0  # selects the anomalous test images; constant, so that every run has the same test images


class CIFAR10Dataset(ImageDataset):
    """Training: the normal classes. Test: all normal test images and as many anomalous ones, in the files' order.

    root_dir is the folder that contains the official cifar-10-batches-py; normals are class ids, 0 to 9. With five normal
    classes all anomalous test images are used, otherwise a fixed random subset. There are no masks. UserError for missing or
    damaged files and impossible `normals`.
    """

    def __init__(
        self,
        root_dir: str,
        normals: list[int],
        transform: Transform,
        training: bool,
        seed: int = 0,
        pseudo_anomalies: bool = False,
    ) -> None:
        self._check_normals(normals, training)
        folder = Path(root_dir) / FOLDER
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; dataset.root_dir must be the folder that contains {FOLDER}")
        classes = _read_class_names(folder / "batches.meta")
        paths = [folder / name for name in (TRAIN_FILES if training else TEST_FILES)]
        self.files = [describe_file(path) for path in paths if path.is_file()]  # before reading, so a later change is noticed
        images, targets = _read_batches(paths)
        is_normal = np.isin(targets, normals)
        if not is_normal.any():
            raise UserError(f"{folder} holds no image of the normal classes {normals}")
        chosen = np.flatnonzero(is_normal) if training else self._choose_test(is_normal, all_anomalous=len(set(normals)) == 5)
        self.images = images[chosen]  # N x 32 x 32 x 3 uint8, RGB
        super().__init__(
            filenames=[f"{classes[targets[i]]}/{i}.jpg" for i in chosen],
            labels=[int(not is_normal[i]) for i in chosen],
            clsnames=["cifar"] * len(chosen),
            transform=transform,
            training=training,
            seed=seed,
            pseudo_anomalies=pseudo_anomalies,
        )

    @staticmethod
    def _check_normals(normals: list[int], training: bool) -> None:
        if not normals or not set(normals) <= set(range(NUM_CLASSES)):
            raise UserError(f"normals is {normals}; it must list the ids of the normal classes, from 0 to {NUM_CLASSES - 1}")
        if not training and len(set(normals)) == NUM_CLASSES:
            raise UserError("normals holds all ten classes, which leaves no anomalous image to test on; leave some out")

    @staticmethod
    def _choose_test(is_normal: np.ndarray, all_anomalous: bool) -> np.ndarray:
        """Sorted indices of all normal images and of the selected anomalous images."""
        normal, anomalous = np.flatnonzero(is_normal), np.flatnonzero(~is_normal)
        if not all_anomalous and len(anomalous) > len(normal):
            anomalous = np.random.default_rng(TEST_SEED).choice(anomalous, len(normal), replace=False)
        return np.sort(np.concatenate([normal, anomalous]))

    def load(self, index: int) -> tuple[np.ndarray, None]:
        return self.images[index], None

    def read_rgb(self, index: int) -> np.ndarray:
        return self.images[index]

    def sources(self) -> list[tuple[str, int, int]]:
        """The batch files; `filenames` tells which of their images are used."""
        return self.files


def _read_class_names(path: Path) -> list[str]:
    names = _unpickle(path).get("label_names")
    if not isinstance(names, list) or len(names) != NUM_CLASSES:
        raise UserError(f"{path} does not hold the ten label_names of CIFAR-10; unpack the official archive again")
    return [_text(name) for name in names]


def _read_batches(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """All images of the files, N x 32 x 32 x 3 uint8 RGB, and their class ids, N."""
    images, targets = [], []
    for path in paths:
        batch = _unpickle(path)
        data, labels = batch.get("data"), batch.get("labels")
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < NUM_CLASSES for label in labels):
            raise UserError(f"{path} does not hold a list of labels from 0 to 9; unpack the official archive again")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3 * 32 * 32):
            raise UserError(f"{path} does not hold a row of 3072 bytes for each label; unpack the official archive again")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # N x 32 x 32 x 3
        targets += labels
    return np.concatenate(images), np.array(targets)


def _unpickle(path: Path) -> dict:
    """The dict in one of the official files with str keys; UserError for a missing, damaged or foreign file."""
    try:
        with path.open("rb") as file:
            content = _CifarUnpickler(file, path).load()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; unpack the official archive again") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} is damaged or no CIFAR-10 file ({error}); unpack the official archive again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no CIFAR-10 file (it holds no dict); unpack the official archive again")
    return {_text(key): value for key, value in content.items()}


def _text(value: str | bytes) -> str:
    """The official files' Python 2 strings arrive as str; a copy written by Python 3 may hold bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Replaces _codecs.encode, with which Python 3 pickles bytes in protocol 2."""
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # makes an empty array that unpickling fills

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _CifarUnpickler(pickle.Unpickler):
    """An unpickler that accepts only the names in `_ALLOWED`, so that a file cannot run code."""

    def __init__(self, file, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            message = f"{self.path} asks for {module}.{name}, which no CIFAR-10 file does; it is refused: do not trust this file"
            raise UserError(message) from None
