"""Runs of the tiny experiment that open its feature cache."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.base import ImageDataset
from datasets.build import build_dataloader, build_dataset
from datasets.cached import FeatureDataset
from models.network import Network, build_network
from utils.config import load_config, to_plain
from utils.process.distributed import Process
from utils.training.feature_cache import cached

FILES = ["features.bin", "key.json", "masks.bin", "sizes.bin", "sums.bin"]


class Run:
    """The data sets and the network of a run, always with the same random weights; the cache lies beside the configuration."""

    def __init__(self, path: Path, *overrides: str, dtype: str = "float32") -> None:
        self.cfg = to_plain(load_config(path, overrides))
        self.dir = path.parent / "cache"
        self.cfg["dataset"]["feature_cache"] = {"mode": "auto", "dtype": dtype, "check": "sample", "dir": str(self.dir)}
        torch.manual_seed(0)
        self.network: Network = build_network(self.cfg["net"])
        self.computed = 0  # images that the backbone was run on
        self.network.backbone.register_forward_hook(self._count)

    def _count(self, backbone: torch.nn.Module, inputs: tuple[dict[str, Tensor]], outputs: Any) -> None:
        self.computed += len(inputs[0]["image"])

    def images(self, split: str) -> ImageDataset:
        return build_dataset(self.cfg["dataset"], split)

    def open(self, split: str = "train", process: Process | None = None) -> ImageDataset | FeatureDataset:
        return cached(self.images(split), self.network, self.cfg, process or Process(), split)

    @torch.no_grad()
    def features(self, data: ImageDataset | FeatureDataset) -> Tensor:
        """Of all samples, N x C x h x w, with or without a cache."""
        loader = build_dataloader(data, {**self.cfg["dataset"], "test": {}}, "test")
        return torch.cat([self.network.eval()(batch)["feature_align"] for batch in loader])

    def folders(self) -> list[Path]:
        """Everything in the cache's dir."""
        return sorted(self.dir.iterdir()) if self.dir.is_dir() else []


def touch(path: Path) -> None:
    """Make the file a nanosecond younger."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
