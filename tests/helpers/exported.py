"""Running exported files."""

from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.lists import read_list
from utils.predict.onnx_engine import OnnxEngine


def run_file(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix == ".onnx":
        return OnnxEngine(path)(images)
    scores, maps = torch.jit.load(path)(torch.from_numpy(images))
    return scores.numpy(), maps.numpy()


def images_of(folder: Path) -> tuple[list[dict], np.ndarray]:
    """The records of the test set, and its images, N x 64 x 64 x 3 RGB."""
    records = read_list(folder / "data/test.json")
    return records, np.stack([cv2.imread(str(folder / "data" / record["filename"]))[..., ::-1] for record in records])
