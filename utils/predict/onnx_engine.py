"""Running an exported ONNX file, without torch."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.evaluation.calibration import Calibration

FORMAT_VERSION = 1  # of what an exported file takes, gives and says of itself
FIELDS = ("input_size", "color_mode", "resample", "score", "calibration", "classes", "epoch")  # that it says of itself, as JSON


class OnnxEngine:
    """An exported file, run by onnxruntime on a GPU where its package has one, else on the CPU.

    An Engine of utils.predict.predictor, which also knows the `classes` and the `epoch` of the training, where they were known.
    file: its path, or its content. Raises UserError for a missing or damaged file and for one that tools/export.py did not write.
    """

    def __init__(self, file: str | Path | bytes) -> None:
        onnxruntime = import_or_explain("onnxruntime")
        where = "the exported file" if isinstance(file, bytes) else str(file)
        if not isinstance(file, bytes) and not Path(file).is_file():
            raise UserError(f"{where}: there is no such file")
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            content = file if isinstance(file, bytes) else str(file)
            self.session = onnxruntime.InferenceSession(content, providers=providers)
        except Exception as error:  # each kind of damage has an exception of its own
            raise UserError(f"{where}: damaged, or no ONNX file that onnxruntime runs ({str(error).splitlines()[0]})") from None
        metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, where)
        self.input_size: tuple[int, int] = tuple(metadata["input_size"])
        self.color_mode: str = metadata["color_mode"]
        self.resample: str = metadata["resample"]
        self.score: str = metadata["score"]
        self.classes: list[str] = metadata["classes"]
        self.calibration = metadata["calibration"] and Calibration.from_dict(metadata["calibration"])
        self.epoch: int | None = metadata["epoch"]
        (image,) = self.session.get_inputs()
        self.takes_uint8 = image.type == "tensor(uint8)"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """images: BxHxWx3 RGB of `input_size`, uint8, or float32 in 0..1. Returns scores, B, and maps, BxHxW, both float32."""
        if images.dtype == np.uint8 and not self.takes_uint8:
            images = images.astype(np.float32) / 255
        scores, maps = self.session.run(["score", "map"], {"image": images})
        return scores, maps


def read_metadata(entries: dict[str, str], where: str) -> dict[str, Any]:
    """The entries' values. Raises UserError naming the file `where` unless they are those of this format."""
    version = entries.get("format_version")
    if version is None:
        raise UserError(f"{where}: not written by tools/export.py, it does not say what goes in and what comes out")
    if version != str(FORMAT_VERSION):
        raise UserError(f"{where}: of format {version}, and this version reads format {FORMAT_VERSION}: export it again")
    return {name: json.loads(entries[name]) for name in FIELDS}  # other software adds entries of its own


def import_or_explain(package: str) -> ModuleType:
    """The package. Raises UserError that says how to install it where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UserError(f"the package {package} is missing, which ONNX files need: pip install {package}") from None
