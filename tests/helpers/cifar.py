"""CIFAR-10 files as the official archive has them."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings; protocol 2."""

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)


def python2_pickle(content: dict) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(labels: list[int], first: int) -> dict:
    """Image number i of the split has the value i in its first red pixel."""
    data = np.random.default_rng(first).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    data[:, 0] = np.arange(first, first + len(labels))
    return {b"batch_label": b"a batch", b"labels": labels, b"data": data, b"filenames": [b"x.png"] * len(labels)}


def write_cifar(root: Path, dump=python2_pickle, test_labels: list[int] | None = None) -> Path:
    """Two training images a class in each of the five batches, three test images a class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(dump({b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}))
    for i in range(5):
        (folder / f"data_batch_{i + 1}").write_bytes(dump(batch([*range(10), *range(9, -1, -1)], 20 * i)))
    (folder / "test_batch").write_bytes(dump(batch(test_labels or [*range(10)] * 3, 0)))
    return root
