"""The engine of an exported ONNX file: onnxruntime, without torch."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.evaluation.calibration import Calibration

FORMAT_VERSION = 1  # of an exported file's inputs, outputs and metadata
METADATA = ("input_size", "color_mode", "resample", "score", "calibration", "classes", "epoch")  # entries beside the version


class OnnxEngine:
    """An exported file as an Engine, run on a GPU if the onnxruntime package supports one, else on the CPU.

    Also the `classes` and the `epoch` of the training, if they were known. file: its path, or its content. Raises UserError for a
    missing or damaged file and for one that tools/export.py did not write.
    """

    def __init__(self, file: str | Path | bytes) -> None:
        onnxruntime = import_package("onnxruntime")
        name = "the exported file" if isinstance(file, bytes) else str(file)
        if not isinstance(file, bytes) and not Path(file).is_file():
            raise UserError(f"{name}: there is no such file")
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in ("CUDAExecutionProvider", "CPUExecutionProvider") if provider in available]
        try:
            content = file if isinstance(file, bytes) else str(file)
            self.session = onnxruntime.InferenceSession(content, providers=providers)
        except Exception as error:  # each kind of damage has an exception of its own
            raise UserError(f"{name}: damaged, or no ONNX file that onnxruntime runs ({str(error).splitlines()[0]})") from None
        metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, name)
        self.input_size: tuple[int, int] = tuple(metadata["input_size"])
        self.color_mode: str = metadata["color_mode"]
        self.resample: str = metadata["resample"]
        self.score: str = metadata["score"]
        self.classes: list[str] = metadata["classes"]
        self.calibration = metadata["calibration"] and Calibration.from_dict(metadata["calibration"])
        self.epoch: int | None = metadata["epoch"]
        (image,) = self.session.get_inputs()
        self.takes_uint8 = image.type == "tensor(uint8)"
        self.batch_size: int | None = (
            image.shape[0] if isinstance(image.shape[0], int) else None
        )  # another tool may have fixed it

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """images: BxHxWx3 RGB of `input_size`, uint8, or float32 in 0..1. Returns scores, B, and maps, BxHxW, both float32."""
        if images.dtype == np.uint8 and not self.takes_uint8:
            images = images.astype(np.float32) / 255
        size = self.batch_size or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append([output[: len(part)] for output in self.session.run(["score", "map"], {"image": filled})])
        scores, maps = map(np.concatenate, zip(*parts, strict=True))
        return scores, maps


def read_metadata(entries: dict[str, str], name: str) -> dict[str, Any]:
    """The values of METADATA in a file called `name`. Raises UserError if its format is another one."""
    version = entries.get("format_version")
    if version is None:
        raise UserError(f"{name}: not written by tools/export.py, it does not describe its inputs and outputs")
    if version != str(FORMAT_VERSION):
        raise UserError(f"{name}: of format {version}, and this version reads format {FORMAT_VERSION}: export it again")
    return {key: json.loads(entries[key]) for key in METADATA}


def import_package(package: str) -> ModuleType:
    """Raises UserError that says how to install a missing package."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UserError(f"the package {package} is missing; ONNX files need it: pip install {package}") from None
