"""What every run begins with: random numbers, loaders, and a line that says where it runs."""

import os
from typing import Any

from easydict import EasyDict
from torch.utils.data import DataLoader

from datasets.build import build_dataloader
from utils.config import to_plain
from utils.process.distributed import Process, broadcast
from utils.process.seeding import make_reproducible, seed_everything
from utils.training.feature_cache import FeatureDataset


def start_random(config: EasyDict, process: Process) -> int:
    """Seed this process; returns the seed that all processes share, drawn where the configuration gives none."""
    if config.reproduce:
        make_reproducible()
    if config.random_seed is None:
        return broadcast(int.from_bytes(os.urandom(4), "big"), process)
    seed_everything(config.random_seed + process.rank)
    return config.random_seed


def load(data: Any, config: EasyDict, split: str, process: Process, seed: int) -> DataLoader:
    pin_memory = process.device.type == "cuda"
    cfg = to_plain(config.dataset)
    if isinstance(data, FeatureDataset):  # a row of memory is read sooner than a worker is asked for it
        cfg[split]["workers"] = 0
    return build_dataloader(data, cfg, split, process.rank, process.world_size, seed, pin_memory)


def describe(process: Process) -> str:
    processes, each = ("1 process", "") if process.world_size == 1 else (f"{process.world_size} processes", " each")
    return f"{processes} on CPU, no GPU is visible" if process.device.type == "cpu" else f"{processes} on a GPU{each}"
