"""A checkpoint as one file that other software runs, ONNX or TorchScript: image in, score and anomaly map out.

Colour mode, normalisation, network, map and score are inside. Resizing is not: no graph does exactly what PIL's filter does,
with which the network was trained. The metadata name the filter (`resample`).
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.build import build_dataset
from datasets.images import convert_color
from datasets.lists import read_list
from datasets.roi import ALL, Roi
from utils.config import to_plain
from utils.errors import UserError
from utils.evaluation.metrics import TOP_SHARE, top_count
from utils.files import write_atomically
from utils.predict.bundle import check_bundle_folder, write_bundle
from utils.predict.onnx_engine import FORMAT_VERSION, OnnxEngine, import_package
from utils.predict.predictor import Predictor
from utils.predict.torch_engine import TorchEngine, uncrop

INPUTS = ("uint8", "float")
METADATA = "metadata.json"  # among a TorchScript file's extra files
CHECKED = 16  # images that the file is checked on
TOLERANCE = 1e-4  # largest difference between the file's maps and scores and PyTorch's, as a share of the maps' range
GRAY = (9798 / 32768, 19235 / 32768, 3735 / 32768)  # weights of R, G and B in OpenCV's fixed-point arithmetic

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # images B x H x W x 3 -> scores B, maps B x H x W


class ImageToMap(nn.Module):
    """A TorchEngine as one module: colour mode, normalisation, network, anomaly map and score."""

    def __init__(self, engine: TorchEngine, inside: np.ndarray | None = None) -> None:
        """inside: HxW bool of the input size, the region of interest; None: all."""
        super().__init__()
        self.network = engine.network
        self.color_mode = engine.color_mode
        self.score_key, self.form, self.transform = engine.score_key, engine.form, engine.transform
        self.register_buffer("mean", engine.transform.mean.flatten())
        self.register_buffer("std", engine.transform.std.flatten())
        self.register_buffer("gray", torch.tensor(GRAY))
        self.has_roi = inside is not None
        if inside is not None:
            self.register_buffer("fill", torch.from_numpy(engine.fill.copy()))
            self.register_buffer("inside", torch.from_numpy(inside)[..., None])  # H x W x 1
            self.register_buffer("inside_map", torch.from_numpy(self.form.inside(self.transform.middle(inside))))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: BxHxWx3, uint8, or float32 in 0..1. Returns the scores, B, and the maps, BxHxW, both float32."""
        if self.has_roi:
            fill = self.fill if image.dtype == torch.uint8 else self.fill.float() / 255
            image = torch.where(self.inside, image, fill)
        top, left = ((whole - part) // 2 for whole, part in zip(self.transform.input_size, self.transform.crop, strict=True))
        image = image[:, top : top + self.transform.crop[0], left : left + self.transform.crop[1]]
        levels = image.float() if image.dtype == torch.uint8 else image * 255
        if self.color_mode == "BGR":
            levels = levels.flip(3)
        elif self.color_mode == "GRAY":
            levels = ((levels * self.gray).sum(dim=3, keepdim=True) + 0.5).floor()  # B x H x W x 1
        pixels = (levels / 255 - self.mean) / self.std  # B x H x W x 3
        anomaly_map = self.form(self.network({"image": pixels.permute(0, 3, 1, 2)})["pred"]).squeeze(1)  # B x H x W
        inside = None
        if self.has_roi:
            inside, anomaly_map = self.inside_map, anomaly_map * self.inside_map
        return image_score(anomaly_map, *self.score_key, inside), uncrop(anomaly_map, self.transform)


def image_score(anomaly_map: Tensor, name: str, option: tuple[int, int] | float | None, inside: Tensor | None = None) -> Tensor:
    """evaluation.metrics.image_score as tensor operations: BxHxW -> B. Sums over rows first keep float32 exact enough.

    inside: HxW bool, the pixels that count; None: all.
    """
    if name == "max":
        height, width = option or (1, 1)
        rows = F.avg_pool2d(anomaly_map[:, None], (height, 1), stride=1)  # B x 1 x H' x W
        return F.avg_pool2d(rows, (1, width), stride=1).amax(dim=(1, 2, 3))
    if name == "top":
        pixels = anomaly_map[0].numel() if inside is None else int(inside.sum())
        ranked = anomaly_map if inside is None else anomaly_map.masked_fill(~inside, -torch.inf)
        return ranked.flatten(1).topk(top_count(pixels, option or TOP_SHARE)).values.mean(dim=1)
    share = 1.0 if inside is None else inside.float().mean()
    mean = anomaly_map.mean(dim=2).mean(dim=1) / share
    if name == "mean":
        return mean
    squares = (anomaly_map - mean[:, None, None]).square()
    if inside is not None:
        squares = squares * inside
    return (squares.mean(dim=2).mean(dim=1) / share).sqrt()


def export_checkpoint(
    checkpoint: str | Path,
    format: str,
    out: str | Path | None = None,
    input: str = "uint8",
    config: str | Path | dict | None = None,
    class_name: str | None = None,
) -> str:
    """Write the checkpoint as `format`, a key of WRITERS, to `out`, by default beside it; returns a summary in words.

    input: one of INPUTS. config: for a checkpoint without one, its configuration or file. class_name: whose region of interest
    the file has, where each class has its own. Raises UserError, and writes nothing, for a network that makes no anomaly maps,
    and if the file's outputs differ from PyTorch's.
    """
    if format not in WRITERS:
        raise UserError(f"--format '{format}' is unknown: use one of {', '.join(WRITERS)}")
    checkpoint = Path(checkpoint)
    out = Path(out or checkpoint.with_name(f"{checkpoint.name.removesuffix('.pth.tar')}.{format}"))
    data, closeness = checked_file(TorchEngine(checkpoint, "cpu", config), format, out, input, class_name)
    write_atomically(out, lambda file: file.write(data))
    return f"{out}: {closeness}"


def export_bundle(
    checkpoint: str | Path,
    folder: str | Path,
    input: str = "uint8",
    config: str | Path | dict | None = None,
    class_name: str | None = None,
) -> str:
    """Write the checkpoint as a folder that needs neither PyTorch nor this repository; returns a summary in words.

    input, config, class_name and what is refused: as for `export_checkpoint`; also a folder that holds other files
    and no earlier bundle.
    """
    check_bundle_folder(folder)
    engine = TorchEngine(checkpoint, "cpu", config)
    data, closeness = checked_file(engine, "onnx", folder, input, class_name)
    write_bundle(folder, data)
    uncalibrated = "" if engine.calibration else "\nno decisions and regions: run tools/calibrate.py, and export again"
    return f"{folder}: {closeness}{uncalibrated}"


def checked_file(
    engine: TorchEngine, format: str, out: str | Path, input: str, class_name: str | None = None
) -> tuple[bytes, str]:
    """The content of an exported file, and how close it is to PyTorch, in words. Raises UserError if it is not close.

    out: as errors name what was to be written; the other arguments: as for `export_checkpoint`.
    """
    engine.precision = torch.float32
    dataset = to_plain(engine.config.dataset)
    predictor = Predictor(engine, class_name)
    predictor.check_class()
    inside = engine.roi.inside(class_name, engine.input_size) if engine.roi and not engine.tiles else None
    images, kind = sample_images(predictor, dataset)
    inputs = images if input == "uint8" else images.astype(np.float32) / 255
    example = torch.from_numpy(np.repeat(inputs[:1], 2, axis=0))  # exporters treat a batch of one as a constant
    metadata = metadata_of(engine, dataset)
    metadata["roi"] = Roi({class_name or ALL: engine.roi.mask(class_name)}).to_list() if engine.roi else None
    data, run = WRITERS[format](ImageToMap(engine, inside), example, metadata)
    deviation = compare(engine(images, [inside] * len(images)), run, inputs)
    if not deviation <= TOLERANCE:
        raise UserError(
            f"{out} was not written: its outputs differ from PyTorch's by {deviation:.1e} of the maps' range on {len(images)} "
            f"{kind}, more than {TOLERANCE:.0e}; export with other versions of torch and onnxruntime"
        )
    return data, f"differs from PyTorch by {deviation:.1e} of the maps' range on {len(images)} {kind}"


def metadata_of(engine: TorchEngine, dataset: dict[str, Any]) -> dict[str, Any]:
    """The file's metadata, values of JSON; `calibration` is the one beside the checkpoint, or null."""
    return {
        "format_version": FORMAT_VERSION,
        "input_size": list(engine.input_size),
        "color_mode": engine.color_mode,
        "resample": engine.resample,
        "score": engine.score,
        "score_option": engine.score_key[1],
        "calibration": engine.calibration and engine.calibration.to_dict(),
        "classes": sorted(engine.memory.classes) if engine.memory else known_classes(dataset),
        "epoch": engine.epoch,
        "fill": engine.fill.tolist(),
        "tiles": asdict(engine.tiles) if engine.tiles else None,
    }


def known_classes(dataset: dict[str, Any]) -> list[str]:
    """The classes of the training images, sorted; none if the list is gone."""
    if dataset["type"] == "cifar10":
        return ["cifar"]
    dataset = {**dataset, **dataset["train"]}
    if dataset.get("class_name"):
        return [dataset["class_name"]]
    try:
        return sorted({record["clsname"] for record in read_list(dataset["meta_file"])})
    except UserError:
        return []


def sample_images(predictor: Predictor, dataset: dict[str, Any]) -> tuple[np.ndarray, str]:
    """Up to CHECKED images of the test set, or random ones if it is gone, as the engine takes them; and their kind in words.

    Of a photograph in tiles it is one tile.
    """
    try:
        data = build_dataset(dataset, "test")
        chosen = np.linspace(0, len(data) - 1, min(CHECKED, len(data))).astype(int)
        pictures, kind = [data.read_rgb(index) for index in chosen], "test images"
        prepared = [predictor.prepare(rgb).images for rgb in pictures]
    except UserError:
        size = (CHECKED, *predictor.engine.input_size, 3)
        noise, kind = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), "random images"
        prepared = [convert_color(one, predictor.engine.color_mode)[None] for one in noise]
    return np.stack([images[number % len(images)] for number, images in enumerate(prepared)]), kind


def compare(expected: tuple[np.ndarray, np.ndarray], run: Run, images: np.ndarray) -> float:
    """The largest difference between expected scores and maps and those of `run`, as a share of the maps' range.

    The first image is also run alone: a file that takes only one batch size fails.
    """
    deviations = []
    for count in (len(images), 1):
        for wanted, given in zip(expected, run(images[:count]), strict=True):
            if given.shape != wanted[:count].shape:
                return np.inf
            deviations.append(np.abs(given - wanted[:count]).max())
    return float(np.max(deviations) / np.ptp(expected[1]))


def to_onnx(model: nn.Module, example: Tensor, metadata: dict[str, Any]) -> tuple[bytes, Run]:
    """The ONNX file's bytes, and the file run by onnxruntime."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_package(package)
    model.requires_grad_(True)  # with gradients the network runs in its plain form, which can be exported
    with quiet():
        program = torch.export.export(model, (example,), dynamic_shapes=[{0: torch.export.Dim("batch")}], strict=False)
        names = {"input_names": ["image"], "output_names": ["score", "map"], "dynamic_shapes": [{0: "batch"}]}
        proto = torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # they hold paths of this machine
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    data = proto.SerializeToString()
    return data, OnnxEngine(data)


def to_torchscript(model: nn.Module, example: Tensor, metadata: dict[str, Any]) -> tuple[bytes, Run]:
    """The TorchScript file's bytes, and the file run by torch."""
    buffer = io.BytesIO()
    model.requires_grad_(False)
    with torch.no_grad(), quiet():
        model(example)  # makes the folded weights before tracing, so that they become constants
        traced = torch.jit.freeze(torch.jit.trace(model, example, check_trace=False))
        torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata)})
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = loaded(torch.from_numpy(images))
        return scores.numpy(), maps.numpy()

    return buffer.getvalue(), run


WRITERS = {"onnx": to_onnx, "torchscript": to_torchscript}  # also the files' endings


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
