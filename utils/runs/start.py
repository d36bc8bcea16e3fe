"""What every run begins with: random numbers, loaders, and a line that names the device."""

import functools
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from easydict import EasyDict

from datasets.build import build_dataloader
from datasets.loading import ImageLoader, SampleReader
from utils.config import to_plain
from utils.files import lock
from utils.process.distributed import Process, broadcast, on_main
from utils.process.seeding import make_reproducible, seed_everything

log = logging.getLogger("uniad")


def writes(*keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a function (config, process, ...): while it runs, it has the folders to itself that the keys of the configuration name.

    Every process must call it. Raises UserError if another run writes there, or if a folder cannot be written.
    """

    def find(config: dict[str, Any], key: str) -> str | None:
        section, _, rest = key.partition(".")
        value = config.get(section)
        return find(value or {}, rest) if rest else value

    def decorate(action: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(action)
        def locked(config: EasyDict, process: Process, *args: Any, **kwargs: Any) -> None:
            with ExitStack() as stack:
                for folder in filter(None, (find(config, key) for key in keys)):
                    on_main(lambda folder=folder: stack.enter_context(lock(folder)), process)
                action(config, process, *args, **kwargs)

        return locked

    return decorate


def seed_run(config: EasyDict, process: Process) -> int:
    """Seed this process; returns the seed that all processes share, a random one where the configuration gives none."""
    if config.reproduce:
        make_reproducible()
    if config.random_seed is None:
        return broadcast(int.from_bytes(os.urandom(4), "big"), process)
    seed_everything(config.random_seed + process.rank)
    return config.random_seed


def build_loader(data: SampleReader, config: EasyDict, split: str, process: Process, seed: int = 0) -> ImageLoader:
    """This process's loader of a split."""
    pin_memory = process.device.type == "cuda"
    return build_dataloader(data, to_plain(config.dataset), split, process.rank, process.world_size, seed, pin_memory)


def warn_of_new_classes(history: list[dict[str, float]], clsnames: Iterable[str], what: str) -> None:
    """A line for classes that no validation of a run had. history: of its checkpoint, with keys <class>_<score>_<metric>."""
    known = {key.rsplit("_", 2)[0] for item in history for key in item if key.count("_") >= 2}
    if known and (new := sorted({*clsnames} - known)):
        log.info("%s has not seen %s: train a new run with them (--overwrite)", what, ", ".join(new))


def describe_process(config: EasyDict, split: str, process: Process) -> str:
    """The processes of a run, and how many threads and loader workers each has, by whose choice."""
    processes, each = ("1 process", "") if process.world_size == 1 else (f"{process.world_size} processes", " each")
    where = "on CPU, no GPU is visible" if process.device.type == "cpu" else f"on a GPU{each}"
    threads, chosen = torch.get_num_threads(), "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "PyTorch's choice"
    workers = {**config.dataset, **(config.dataset.get(split) or {})}["workers"]
    return f"{processes} {where}; threads{each}: {threads} ({chosen}), loader workers{each}: {workers} (dataset.workers)"
