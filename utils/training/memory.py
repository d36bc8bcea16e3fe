"""Filling a Memory: one pass over the training images. It takes the trainer's place in a run."""

import logging
import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.loading import ImageLoader
from models import find_memory
from models.reconstructions.memory import shares
from utils.errors import Interrupted, UserError
from utils.process.checkpoint import LAST, load_checkpoint, load_network_state, network_state, remove_leftovers, save_checkpoint
from utils.process.distributed import Process, barrier, gather_everywhere, to_device
from utils.process.precision import autocast, choose_precision
from utils.process.signals import StopSignals
from utils.process.skipped import report_skipped
from utils.process.versions import versions

CANDIDATES = 4  # random tokens for each one that a greedy coreset chooses

log = logging.getLogger("uniad")


@dataclass
class MemoryFiller:
    """A network whose memory is to be filled; `epoch` is 1 when it is filled and validated.

    Every process of a run must make the same calls.
    """

    network: nn.Module
    criterion: nn.Module
    config: dict[str, Any]  # the whole configuration as plain dicts
    process: Process
    seed: int
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.precision = choose_precision(self.config["trainer"]["precision"])
        self.memory = find_memory(self.network)

    def train(self, loader: ImageLoader, validate: Callable[[], dict[str, float]] = dict) -> None:
        """Fill the memory with the loader's images, save it, validate, and save what was found.

        SIGTERM and SIGUSR1 raise Interrupted: at once in the pass, with nothing saved, else when the filled memory is saved.
        During validation they change nothing.
        """
        folder = Path(self.config["saver"]["save_dir"])
        remove_leftovers(folder)
        with StopSignals() as signals:
            if not len(self.memory.tokens):
                self.memory.fill(self.gather(loader, self.memory.max_tokens, signals), self.memory.max_tokens, self.seed)
                self.save()  # before validation, which can fail or be killed: a resumed run has only that left
                if number := signals.agreed(self.process):
                    barrier(self.process)  # no process leaves before the file is there
                    where = f"the memory is saved in {folder / LAST}; go on with saver.auto_resume=True"
                    raise Interrupted(f"{signal.Signals(number).name}: stopped before validation, {where}")
            kept = Counter(self.memory.owner.tolist())
            log.info("memory: %s", ", ".join(f"{kept[n]} tokens of {name}" for n, name in enumerate(self.memory.classes)))
            self.history.append({"epoch": 1, **validate()})
            self.epoch = 1
            self.save()

    @torch.no_grad()
    def gather(self, loader: ImageLoader, max_tokens: int, signals: StopSignals) -> dict[str, Tensor]:
        """Random tokens of each class, NxC, smoothed; as many as filling with `max_tokens` chooses from. In every process.

        They depend on the seed and the list, not on the number of processes. Raises UserError if a class has no readable image.
        """
        self.network.eval()
        clsnames, found, chosen = loader.dataset.clsnames, [], {}
        for batch in self.batches(loader, signals):
            with autocast(self.process.device, self.precision):
                features = self.network.front(to_device(batch, self.process.device))["feature_align"]
            grids = self.memory.average(features.float()).flatten(2).transpose(1, 2)  # B x hw x C
            chosen = chosen or self.choose_places(clsnames, grids.shape[1], max_tokens)
            for index, grid in zip(batch["index"].tolist(), grids, strict=True):
                found.append((index, grid[chosen[index]].cpu()))
        report_skipped(loader, self.process, "the pass over the training images")
        samples: dict[str, list[Tensor]] = {name: [] for name in dict.fromkeys(clsnames)}
        parts = [part for share in gather_everywhere(found, self.process) for part in share]
        for index, tokens in sorted(parts, key=lambda part: part[0]):
            samples[clsnames[index]].append(tokens)
        if empty := [name for name, tokens in samples.items() if not sum(map(len, tokens))]:
            raise UserError(f"no training image of {', '.join(empty)} can be read: see the log")
        return {name: torch.cat(tokens).to(self.process.device) for name, tokens in samples.items()}

    def batches(self, loader: ImageLoader, signals: StopSignals) -> Iterator[dict[str, Any]]:
        """This process's batches. All processes take the same number of turns, as each turn asks all for a signal."""
        batches, turns = iter(loader), math.ceil(len(loader.dataset) / (loader.batch_size * self.process.world_size))
        for _ in tqdm(range(turns), desc="memory", leave=False, disable=None if self.process.is_main else True):
            if (batch := next(batches, None)) is not None:
                yield batch
            if number := signals.agreed(self.process):
                name = signal.Signals(number).name
                raise Interrupted(f"{name}: stopped before the memory was full, nothing is saved; run the same command again")

    def choose_places(self, clsnames: list[str], places: int, max_tokens: int) -> dict[int, Tensor]:
        """For each image the random places of its grid to look at."""
        images = {name: [i for i, other in enumerate(clsnames) if other == name] for name in dict.fromkeys(clsnames)}
        quotas = shares({name: len(members) * places for name, members in images.items()}, max_tokens)
        wanted = CANDIDATES if self.memory.coreset == "greedy" else 1
        generator, chosen = torch.Generator().manual_seed(self.seed), {}
        for name, members in images.items():
            drawn = torch.randperm(len(members) * places, generator=generator)[: wanted * quotas[name]]
            mask = torch.zeros(len(members) * places, dtype=torch.bool)
            mask[drawn] = True
            chosen |= dict(zip(members, mask.view(len(members), places), strict=True))
        return chosen

    def save(self) -> None:
        if not self.process.is_main:
            return
        content = {
            "epoch": self.epoch,
            "arch": self.config["net"],
            "state_dict": network_state(self.network),
            "history": self.history,
            "config": self.config,
            "versions": versions(),
        }
        save_checkpoint(Path(self.config["saver"]["save_dir"]) / LAST, content)

    def resume(self, path: Path) -> None:
        content = load_checkpoint(path)
        load_network_state(self.network, content["state_dict"], path)
        self.epoch, self.history = int(content.get("epoch", 1)), list(content.get("history", []))
