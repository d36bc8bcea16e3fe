"""A network behind one call: an image in, its anomaly score and map out.

    predictor = Predictor.from_checkpoint("experiments/demo/checkpoints/ckpt.pth.tar")
    score, anomaly_map = predictor("photo.jpg")

An Engine runs the network. Only the engine of a checkpoint imports torch; an exported network does not need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from datasets.images import RESAMPLE, Picture, convert_color, resize, to_rgb
from datasets.roi import Roi
from datasets.tiles import Layout, Tiles
from utils.errors import UserError
from utils.evaluation.calibration import Calibration
from utils.evaluation.metrics import ScoreKey, image_score

AT_ONCE = 8  # tiles that go through the engine together


class Engine(Protocol):
    """Runs a network, and holds everything a predictor needs to know about it."""

    input_size: tuple[int, int]  # height, width
    color_mode: str  # RGB, BGR or GRAY: how the network was trained
    resample: str  # bilinear or lanczos: how images are resized to input_size
    score: str  # name of the image score: mean, std, max or top
    score_key: ScoreKey  # with its window or share
    calibration: Calibration | None  # thresholds of that score
    roi: Roi | None  # what is inspected; None: everything
    tiles: Tiles | None  # how photographs are cut; None: they are not
    fill: np.ndarray  # the colour outside of the region of interest, 3 uint8 RGB

    def __call__(self, images: np.ndarray, insides: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores, B, and anomaly maps, B x H x W float32.

        images: B x H x W x 3 uint8 RGB of `input_size`, also for BGR; for GRAY the three channels are equal. insides: of each the
        region of interest, H x W bool; None: all. Tiles have theirs painted over before.
        """


@dataclass(frozen=True)
class Prepared:
    """A photograph as the engine takes it."""

    images: np.ndarray  # n x H x W x 3 uint8: the photograph, or its tiles
    inside: np.ndarray | None = None  # the photograph's region of interest, H x W bool; None: all, or it is cut into tiles
    layout: Layout | None = None  # of its tiles
    class_name: str | None = None  # whose region of interest tiles have


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
            results = self.score([self.prepare(rgb) for rgb in pictures])
            for rgb, (score, anomaly_map, inside) in zip(pictures, results, strict=True):
                if not np.isfinite(anomaly_map).all():
                    number = len(scores) + 1
                    raise UserError(f"image {number} of {len(image)}: its anomaly map holds values that are not finite")
                scores.append(score)
                maps.append(whole_map(anomaly_map, rgb.shape[:2], inside))
        return scores, maps

    def check_class(self, class_name: str | None = None) -> None:
        """Raises UserError for a class without a region of interest, where each class has one."""
        if roi := self.engine.roi:
            roi.mask(class_name or self.class_name)

    def prepare(self, rgb: np.ndarray, class_name: str | None = None) -> Prepared:
        """A photograph, h x w x 3 uint8 RGB, of a class. UserError for a class without a region of interest."""
        engine, roi, class_name = self.engine, self.engine.roi, class_name or self.class_name
        size, resample = engine.input_size, RESAMPLE[engine.resample]
        if engine.color_mode == "GRAY":  # before resizing, as in training
            rgb = convert_color(rgb, "GRAY")
        if engine.tiles is None:
            inside = roi.inside(class_name, size) if roi else None
            return Prepared(resize(rgb, size, resample)[None], inside)
        layout = engine.tiles.layout(rgb.shape[:2]).inspected(roi, class_name, size)
        images = np.empty((len(layout.places), *size, 3), np.uint8)
        for number in range(len(images)):
            images[number] = resize(layout.cut(rgb, number), size, resample)
            if roi:
                images[number][~layout.inside(roi, class_name, number, size)] = engine.fill
        return Prepared(images, None, layout, class_name)

    def score(self, batch: Sequence[Prepared]) -> list[tuple[float, np.ndarray, np.ndarray | None]]:
        """Of each photograph score, map and region of interest, both H x W: float32, and bool or None, as in `whole_map`.

        Photographs go through the engine together, tiles a few at a time.
        """
        if self.engine.tiles is not None:
            return [self._join(prepared) for prepared in batch]
        insides = [prepared.inside for prepared in batch]
        scores, maps = self.engine(np.concatenate([prepared.images for prepared in batch]), insides)
        return [(float(score), one, inside) for score, one, inside in zip(scores, maps, insides, strict=True)]

    def _join(self, prepared: Prepared) -> tuple[float, np.ndarray, np.ndarray | None]:
        batches = (prepared.images[start : start + AT_ONCE] for start in range(0, len(prepared.images), AT_ONCE))
        maps = chain.from_iterable(self.engine(batch)[1] for batch in batches)
        first = next(maps)
        anomaly_map = prepared.layout.join(chain([first], maps), first.shape)
        inside = None
        if roi := self.engine.roi:
            inside = roi.of_map(prepared.class_name, anomaly_map.shape)
            anomaly_map[~inside] = 0
        return float(image_score(anomaly_map, *self.engine.score_key, inside)), anomaly_map, inside


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
