"""A network behind one call: an image in, its anomaly score and map out.

    predictor = Predictor.from_checkpoint("experiments/demo/checkpoints/ckpt.pth.tar")
    score, anomaly_map = predictor("photo.jpg")

An Engine runs the network. Only the engine of a checkpoint imports torch; an exported network does not need it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from datasets.images import RESAMPLE, Picture, convert_color, resize, to_rgb
from datasets.roi import Roi
from utils.errors import UserError
from utils.evaluation.calibration import Calibration


class Engine(Protocol):
    """Runs a network, and holds everything a predictor needs to know about it."""

    input_size: tuple[int, int]  # height, width
    color_mode: str  # RGB, BGR or GRAY: how the network was trained
    resample: str  # bilinear or lanczos: how images are resized to input_size
    score: str  # name of the image score: mean, std, max or top
    calibration: Calibration | None  # thresholds of that score
    roi: Roi | None  # what is inspected; None: everything

    def __call__(self, images: np.ndarray, insides: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores, B, and anomaly maps, B x H x W float32.

        images: B x H x W x 3 uint8 RGB of `input_size`, also for BGR; for GRAY the three channels are equal. insides: of each the
        region of interest, H x W bool; None: all.
        """


class Predictor:
    """Scores and maps of single images or lists of them, with the numbers that evaluation gives for the same files.

    class_name: whose region of interest is used for an image whose class is not known; None: the one for all classes.
    """

    def __init__(self, engine: Engine, class_name: str | None = None) -> None:
        self.engine, self.class_name = engine, class_name

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | None = None,
        config: str | Path | dict | None = None,
        memory_class: str | None = None,
    ) -> "Predictor":
        """Open a checkpoint, or an exported network (a file named .onnx), which needs no torch.

        device: e.g. "cpu" or "cuda:1"; None: a GPU if there is one. config: the configuration or its file, used instead of
        the one in the checkpoint; published checkpoints hold none. memory_class: of a network with a memory, compare with this
        class only. Raises UserError naming a file that cannot be used.
        """
        if Path(path).suffix.lower() == ".onnx":
            from utils.predict.onnx_engine import OnnxEngine

            if memory_class is not None:
                raise UserError(f"{path}: an exported file compares with all classes; give the checkpoint for one class only")
            return cls(OnnxEngine(path))
        from utils.predict.torch_engine import TorchEngine

        return cls(TorchEngine(path, device, config, memory_class))

    def __call__(
        self, image: Picture | Sequence[Picture], batch_size: int = 8
    ) -> tuple[float, np.ndarray] | tuple[list[float], list[np.ndarray]]:
        """Score and anomaly map, h x w float32 of the image's own size; for a list two lists.

        image: a path, a PIL image, or h x w x 3 uint8 RGB (also h x w, grey, and h x w x 4). Raises UserError for an image that
        cannot be read, or whose map is not finite.
        """
        if not isinstance(image, list | tuple):
            scores, maps = self([image])
            return scores[0], maps[0]
        scores, maps = [], []
        for start in range(0, len(image), batch_size):
            pictures = [to_rgb(picture) for picture in image[start : start + batch_size]]
            inside = self.inside()
            batch = self.engine(np.stack([self.prepare(rgb) for rgb in pictures]), [inside] * len(pictures))
            for rgb, score, anomaly_map in zip(pictures, *batch, strict=True):
                if not np.isfinite(anomaly_map).all():
                    number = len(scores) + 1
                    raise UserError(f"image {number} of {len(image)}: its anomaly map holds values that are not finite")
                scores.append(float(score))
                maps.append(whole_map(anomaly_map, rgb.shape[:2], inside))
        return scores, maps

    def inside(self, class_name: str | None = None) -> np.ndarray | None:
        """The region of interest, H x W bool of the engine's input size; None: everything. UserError for a class without one."""
        roi = self.engine.roi
        return roi.inside(class_name or self.class_name, self.engine.input_size) if roi else None

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """h x w x 3 uint8 RGB as the engine takes it, H x W x 3."""
        if self.engine.color_mode == "GRAY":  # before resizing, as in training
            rgb = convert_color(rgb, "GRAY")
        return resize(rgb, self.engine.input_size, RESAMPLE[self.engine.resample])


def whole_map(anomaly_map: np.ndarray, size: Sequence[int], inside: np.ndarray | None) -> np.ndarray:
    """H x W float32 at the image's size, (h, w); 0 outside of the region of interest `inside`, bool."""
    whole = resize_map(anomaly_map, size)
    return whole if inside is None else np.where(inside_at(inside, size), whole, np.float32(0))


def inside_at(inside: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A region of interest, H x W bool, at another size, (h, w)."""
    return resize_map(inside.astype(np.float32), size) > 0.5


def resize_map(anomaly_map: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """H x W float32 at another size, (h, w), bilinear."""
    return cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
