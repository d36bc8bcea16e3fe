"""The engine of an exported ONNX file: onnxruntime, without torch."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from datasets.images import COLOR_MODES, RESAMPLE
from datasets.roi import Roi
from datasets.tiles import Tiles
from utils.errors import UserError
from utils.evaluation.calibration import Calibration
from utils.evaluation.metrics import ScoreKey
from utils.limits import SIDE
from utils.reading import parse_json

FORMAT_VERSION = 2  # of an exported file's inputs, outputs and metadata
OUTPUTS = {"score": 1, "map": 3}  # with their dimensions
INPUTS = ("tensor(uint8)", "tensor(float)")


def is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and 1 <= side <= SIDE for side in value)


def is_option(value: Any) -> bool:
    """A window or a share of a score."""
    return value is None or is_size(value) or (type(value) in (int, float) and 0 <= value <= 1)


def is_tiles(value: Any) -> bool:
    """None, or a size and an overlap that is less than its sides."""
    if value is None:
        return True
    is_complete = isinstance(value, dict) and value.keys() == {"size", "overlap"} and is_size(value["size"])
    return is_complete and type(value["overlap"]) is int and 0 <= value["overlap"] < min(value["size"])


def is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value)


METADATA: dict[str, Callable[[Any], bool]] = {  # entries beside the version, and what they may be
    "input_size": is_size,
    "color_mode": lambda value: value in COLOR_MODES,
    "resample": lambda value: isinstance(value, str) and value in RESAMPLE,
    "score": lambda value: value in ("mean", "std", "max", "top"),
    "score_option": is_option,
    "calibration": lambda value: value is None,
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "roi": lambda value: value is None,
    "fill": is_colour,
    "tiles": is_tiles,
    "epoch": lambda value: value is None or type(value) is int,
}


class OnnxEngine:
    """An exported file as an Engine, run on a GPU if the onnxruntime package supports one, else on the CPU.

    Also the `classes` and the `epoch` of the training, if they were known. file: its path, or its content. Raises UserError for a
    missing or damaged file and for one that tools/export.py did not write.
    """

    def __init__(self, file: str | Path | bytes) -> None:
        onnxruntime = import_package("onnxruntime")
        name = "the exported file" if isinstance(file, bytes) else str(file)
        if not isinstance(file, bytes) and not os.path.isfile(file):
            raise UserError(f"{name}: there is no such file")
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in ("CUDAExecutionProvider", "CPUExecutionProvider") if provider in available]
        try:
            content = file if isinstance(file, bytes) else str(file)
            self.session = onnxruntime.InferenceSession(content, providers=providers)
            entries = self.session.get_modelmeta().custom_metadata_map  # decodes texts
        except Exception as error:  # each kind of damage has an exception of its own
            raise UserError(f"{name}: damaged, or no ONNX file that onnxruntime runs ({str(error).splitlines()[0]})") from None
        metadata = read_metadata(entries, name)
        self.input_size: tuple[int, int] = tuple(metadata["input_size"])
        self.color_mode: str = metadata["color_mode"]
        self.resample: str = metadata["resample"]
        self.score: str = metadata["score"]
        option = metadata["score_option"]
        self.score_key: ScoreKey = self.score, tuple(option) if isinstance(option, list) else option
        self.classes: list[str] = metadata["classes"]
        self.calibration: Calibration | None = metadata["calibration"]
        self.epoch: int | None = metadata["epoch"]
        self.roi: Roi | None = metadata["roi"]
        self.fill = np.array(metadata["fill"], np.uint8)
        self.tiles = Tiles.of(metadata["tiles"])
        image, self.name = check_graph(self.session, self.input_size, name), name
        self.takes_uint8 = image.type == "tensor(uint8)"
        batch_size = image.shape[0]  # another tool may have fixed it
        self.batch_size: int | None = batch_size if isinstance(batch_size, int) else None

    def __call__(self, images: np.ndarray, insides: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """images: BxHxWx3 RGB of `input_size`, uint8, or float32 in 0..1. Returns scores, B, and maps, BxHxW, both float32.

        insides: not read, as the network knows the region of interest.
        """
        if images.dtype == np.uint8 and not self.takes_uint8:
            images = images.astype(np.float32) / 255
        size = self.batch_size or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            try:
                outputs = self.session.run(list(OUTPUTS), {"image": filled})
            except Exception as error:  # e.g. not enough memory
                raise UserError(f"{self.name}: its network cannot be run ({error})") from None
            parts.append([output[: len(part)] for output in outputs])
        scores, maps = map(np.concatenate, zip(*parts, strict=True))
        if scores.shape != images.shape[:1] or maps.shape[:1] != images.shape[:1]:
            raise UserError(f"{self.name}: gives scores {scores.shape} and maps {maps.shape} for images {images.shape}")
        return scores, maps


def check_graph(session: Any, size: tuple[int, int], name: str) -> Any:
    """The description of the input. Raises UserError if the network is not one that takes an image and gives score and map."""
    inputs, outputs = session.get_inputs(), {output.name: len(output.shape) for output in session.get_outputs()}
    image = inputs[0] if len(inputs) == 1 else None
    is_image = image and image.name == "image" and image.type in INPUTS and len(image.shape) == 4
    sides = zip(image.shape[1:], (*size, 3), strict=True) if is_image else ()
    fits = is_image and all(own == side for own, side in sides if isinstance(own, int))
    if not fits or {key: outputs.get(key) for key in OUTPUTS} != OUTPUTS:
        raise UserError(f"{name}: its network does not turn an image of {size[0]} x {size[1]} pixels into score and map")
    return image


def read_metadata(entries: dict[str, str], name: str) -> dict[str, Any]:
    """The values of METADATA in a file called `name`. Raises UserError if its format is another one."""
    version = entries.get("format_version")
    if version is None:
        raise UserError(f"{name}: not written by tools/export.py, it does not describe its inputs and outputs")
    if version != str(FORMAT_VERSION):
        raise UserError(f"{name}: of format {version}, and this version reads format {FORMAT_VERSION}: export it again")
    values = {}
    for key, is_valid in METADATA.items():
        try:
            values[key] = parse_json(entries[key])
            if key == "calibration" and values[key] is not None:
                values[key] = Calibration.from_dict(values[key])
            elif key == "roi" and isinstance(values[key], list):
                values[key] = Roi.read(values[key])
            elif not is_valid(values[key]):
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError, UserError):
            raise UserError(f"{name}: its metadata '{key}' cannot be used: export it again") from None
    return values


def import_package(package: str) -> ModuleType:
    """Raises UserError that says how to install a missing package."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UserError(f"the package {package} is missing; ONNX files need it: pip install {package}") from None
