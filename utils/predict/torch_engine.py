"""The engine of a checkpoint: PyTorch."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from datasets.roi import Roi
from datasets.tiles import Tiles
from datasets.transforms import Transform
from models import build_network, find_memory
from utils.config import load_config, stored_config, to_plain
from utils.config.schema import MAKES_MAPS, SUBNET_KINDS
from utils.errors import UserError
from utils.evaluation.calibration import calibration_of
from utils.evaluation.evaluate import score_columns
from utils.evaluation.maps import MapForm
from utils.evaluation.metrics import image_scores
from utils.process.checkpoint import load_checkpoint, load_network_state
from utils.process.distributed import choose_device
from utils.process.precision import autocast, choose_precision
from utils.report.gallery import headline_score

SECTIONS = ("dataset", "evaluator", "net")


class TorchEngine:
    """A checkpoint's network, an Engine of utils.predict.predictor.

    Also `epoch`, and `config`, which the network was built from.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        config: str | Path | dict | None = None,
        memory_class: str | None = None,
        score: str | None = None,
    ) -> None:
        """See Predictor.from_checkpoint. score: the image score; None: the calibration's, else headline_score's."""
        self.path, content = path, load_checkpoint(path)
        self.epoch: int | None = content.get("epoch")
        self.stored: Any = content.get("config")
        if isinstance(config, str | Path):
            config = load_config(config, needs=SECTIONS)
        elif config is not None:
            config = stored_config(config, path, ("dataset",))
        self.config: EasyDict = config or self.trained
        check_makes_maps(self.config, path)
        self.device = parse_device(device) if device else choose_device(0)
        self.precision = choose_precision((self.config.get("trainer") or {}).get("precision", "float32"))
        self.network = build_network(self.config.net, with_pretrained=False).to(self.device).eval()
        load_network_state(self.network, content["state_dict"], path)

        data, metrics = self.config.dataset, self.config.evaluator.metrics
        self.input_size = tuple(data.input_size)
        self.color_mode = data.image_reader.kwargs.color_mode if data.type == "custom" else "RGB"
        self.resample = "bilinear" if data.type == "custom" else "lanczos"
        normalisation = (data.input_size, data.pixel_mean, data.pixel_std)
        self.transform = Transform(*normalisation, color_mode=self.color_mode, crop=data.get("crop"))
        self.roi = Roi.read(to_plain(data.roi)) if data.get("roi") else None
        self.tiles = Tiles.of(data.get("tiles"))
        self.fill = self.transform.fill[::-1] if self.color_mode == "BGR" else self.transform.fill
        self.form = MapForm.of(self.config.evaluator)
        self.calibration = calibration_of(path) if score is None else None
        calibrated = self.calibration.score if self.calibration else None
        self.score = score or calibrated or headline_score(metrics, self.config.evaluator.key_metric) or "max"
        self.score_key = score_columns(metrics).get(self.score, (self.score, None))  # as in scores.csv
        self.memory = find_memory(self.network)
        if memory_class is not None:
            if self.memory is None:
                raise UserError(f"{path}: its network has no memory, so there is no class to compare with")
            self.memory.only = memory_class
            self.memory.compared()  # raises for an unknown class
            self.calibration = None  # it is of scores by the whole memory

    @cached_property
    def trained(self) -> EasyDict | None:
        """The configuration in the checkpoint, checked like one in a file; None: it holds none."""
        return None if self.stored is None else stored_config(self.stored, self.path, ("dataset",))

    @torch.no_grad()
    def __call__(self, images: np.ndarray, insides: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See Engine."""
        insides = insides or [None] * len(images)
        if self.color_mode == "BGR":
            images = images[..., ::-1]
        pairs = zip(images, insides, strict=True)
        images = [image if inside is None else np.where(inside[..., None], image, self.transform.fill) for image, inside in pairs]
        batch = torch.stack([self.transform.to_tensor(self.transform.middle(image)) for image in images])  # B x 3 x H x W
        with autocast(self.device, self.precision):
            outputs = self.network({"image": batch.to(self.device)})
        maps = self.form(outputs["pred"].float()).squeeze(1).cpu()  # B x H x W
        insides = [None if inside is None else self.form.inside(self.transform.middle(inside)) for inside in insides]
        for anomaly_map, inside in zip(maps.numpy(), insides, strict=True):
            if inside is not None:
                anomaly_map[~inside] = 0
        return image_scores(maps.numpy(), *self.score_key, insides), uncrop(maps, self.transform).numpy()


def uncrop(maps: Tensor, transform: Transform) -> Tensor:
    """Maps BxHxW of the middle part of images as maps of the whole images, 0 where the network saw nothing."""
    padding: list[int] = []  # the last side comes first
    for side, whole, part in zip(map(int, maps.shape[1:]), transform.input_size, transform.crop, strict=True):
        rest = round(side * whole / part) - side
        padding = [rest // 2, rest - rest // 2, *padding]
    return F.pad(maps, padding)


def check_makes_maps(config: EasyDict | None, path: str | Path) -> None:
    """Raises UserError if there is no configuration, or one of a network that makes no anomaly maps."""
    if config is None:
        raise UserError(f"{path}: holds no configuration, like every published checkpoint: give the experiment's with --config")
    if not config.get("evaluator") or not any(SUBNET_KINDS.get(subnet["type"]) in MAKES_MAPS for subnet in config["net"]):
        raise UserError(f"{path}: its network makes no anomaly maps; give a checkpoint of tools/train_val.py")


def parse_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
