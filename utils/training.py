"""Training: one epoch, and the loop of epochs with evaluation, checkpoints and resume around it."""

import logging
import math
import operator
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.checkpoint import load_checkpoint, load_network_state, network_state, save_checkpoint
from utils.distributed import Process, average, gather, to_device
from utils.errors import UserError
from utils.precision import autocast, choose_precision
from utils.seeding import random_state, restore_random_state
from utils.versions import versions

LAST, BEST, CHECKPOINTS = "ckpt.pth.tar", "ckpt_best.pth.tar", "ckpt*.pth.tar"

log = logging.getLogger("uniad")


def train_one_epoch(
    network: nn.Module,
    loader: DataLoader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    process: Process,
    epoch: int,
    clip_max_norm: float | None = None,
    precision: torch.dtype = torch.float32,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """One pass over the loader's data; returns the mean loss over this process's steps.

    `epoch` counts from 0 and decides order and augmentation; the network computes in `precision`; `on_step(step, loss)` is
    called after each step. Raises UserError with step, loss and files of the batch if the loss is not finite.
    """
    network.train()
    loader.sampler.set_epoch(epoch)
    loader.dataset.epoch = epoch
    total = 0.0
    for step, batch in enumerate(tqdm(loader, desc=f"epoch {epoch + 1}", leave=False, disable=None if process.is_main else True)):
        batch = to_device(batch, process.device)
        with autocast(process.device, precision):
            outputs = network(batch)
        loss = criterion(outputs)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at epoch {epoch + 1}, step {step + 1}; files: {', '.join(batch['filename'])}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_max_norm:
            nn.utils.clip_grad_norm_(trained_parameters(network), clip_max_norm)
        optimizer.step()
        total += value
        on_step(step, value)
    return total / len(loader)


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the network's order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def build_optimizer(network: nn.Module, cfg: dict[str, Any]) -> torch.optim.Optimizer:
    if not (parameters := trained_parameters(network)):
        raise UserError("every subnet is frozen, there is nothing to train: see frozen_layers and net[].frozen")
    fused = {"fused": True} if parameters[0].device.type in ("cpu", "cuda") else {}  # one pass over all weights
    return getattr(torch.optim, cfg["type"])(parameters, **{**fused, **cfg["kwargs"]})


def build_scheduler(optimizer: torch.optim.Optimizer, cfg: dict[str, Any]) -> torch.optim.lr_scheduler.LRScheduler:
    return getattr(torch.optim.lr_scheduler, cfg["type"])(optimizer, **cfg["kwargs"])


def distribute(network: nn.Module, process: Process) -> nn.Module:
    """The network as this process trains it: with several of them gradients are averaged."""
    if process.world_size == 1:
        return network
    # Statistics of a batch norm that trains are kept equal; the buffers of a frozen backbone are so already.
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in network.modules())
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    with warnings.catch_warnings():  # torch 2.14 renames the argument, and older ones do not know the new name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=norms)


@dataclass
class Trainer:
    """What a training run consists of; `state` and `restore` are the whole of it in a checkpoint."""

    network: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    process: Process
    epoch: int = 0  # finished epochs
    best_metric: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # an item an epoch: epoch, loss and what validation found

    def finish_epoch(self) -> None:
        # The published loop steps with the epoch's 0-based number, so StepLR(800) acts one epoch late: no step after the first.
        if self.epoch > 0:
            self.scheduler.step()
        self.epoch += 1

    def state(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The checkpoint's content, on rank 0; None elsewhere. Every process must call this."""
        states = gather(random_state(), self.process)
        if states is None:
            return None
        return {
            "epoch": self.epoch,
            "arch": config["net"],
            "state_dict": network_state(self.network),
            "best_metric": self.best_metric,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random_states": states,
            "config": config,
            "versions": versions(),
        }

    def restore(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on from a checkpoint: ours restores everything, a published one weights, epoch and best metric.

        `settings`: the configuration's trainer section; where the checkpoint's optimiser or schedule differs, a line says so.
        """
        content = load_checkpoint(path)
        load_network_state(self.network, content["state_dict"], path)
        if "epoch" not in content:
            raise UserError(f"{path}: holds weights only, there is no run to go on with; start a new one with saver.init_from")
        self.epoch, self.best_metric = int(content["epoch"]), float(content.get("best_metric", self.best_metric))
        self.history = list(content.get("history", []))
        if "scheduler" not in content:
            with warnings.catch_warnings():  # torch warns that the optimiser has made no step; it has, in the run before
                warnings.simplefilter("ignore", UserWarning)
                for _ in range(self.epoch - 1):
                    self.scheduler.step()
            log.info("%s is of the published code: weights and epoch are taken, its optimiser state is left out", path)
            return
        was, now = content["config"]["trainer"]["optimizer"]["type"], type(self.optimizer).__name__
        if was != now:
            raise UserError(f"{path}: trained with {was}, which {now} cannot go on from; start a new run with saver.init_from")
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise UserError(f"{path}: its optimiser does not suit this configuration ({error})") from None
        self.scheduler.load_state_dict(content["scheduler"])
        for part in ("optimizer", "lr_scheduler"):
            if content["config"]["trainer"][part] != settings[part]:
                log.warning("%s goes on with its own trainer.%s, not with the configuration's; saver.init_from would", path, part)
        if len(content["random_states"]) == self.process.world_size:
            restore_random_state(content["random_states"][self.process.rank])
        else:
            log.info("%s is of %d processes: random states start anew", path, len(content["random_states"]))


def find_start(saver: dict[str, Any], overwrite: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    Raises UserError where a new run would write over checkpoints without having been told to.
    """
    last = Path(saver["save_dir"]) / LAST
    if overwrite:
        if saver["resume_model"]:
            raise UserError("--overwrite starts anew and saver.resume_model goes on: choose one of them")
        return None
    if saver["auto_resume"] and last.is_file():
        return last
    if saver["resume_model"]:
        return Path(saver["resume_model"])
    if any(last.parent.glob(CHECKPOINTS)):
        raise UserError(
            f"{last.parent} holds checkpoints of an earlier run: go on from it with saver.auto_resume=True, "
            "start anew over it with --overwrite, or choose another saver.save_dir"
        )
    return None


def remove_checkpoints(folder: str | Path) -> None:
    """Remove an earlier run's checkpoints, so that nothing can go on from them by mistake."""
    for path in Path(folder).glob(CHECKPOINTS):
        path.unlink()


class StepReport:
    """Says how training goes: a log line every print_freq, TensorBoard scalars every tb_freq steps, means over processes."""

    def __init__(self, trainer: Trainer, steps: int, cfg: dict[str, Any], writer: SummaryWriter | None) -> None:
        self.trainer, self.steps, self.cfg, self.writer = trainer, steps, cfg, writer
        self.started = time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        """Both counts start at step 1, and a line closes every epoch."""
        trainer, done = self.trainer, step + 1
        total = trainer.epoch * self.steps + done
        prints = done % self.cfg["print_freq_step"] == 0 or done == self.steps
        draws = total % self.cfg["tb_freq_step"] == 0
        if not (prints or draws):
            return
        loss = average(loss, trainer.process)
        lr = trainer.optimizer.param_groups[0]["lr"]
        if draws and self.writer:
            self.writer.add_scalar("loss_train", loss, total)
            self.writer.add_scalar("lr", lr, total)
        if prints:
            seconds = (time.monotonic() - self.started) / done
            epoch, epochs = trainer.epoch + 1, self.cfg["max_epoch"]
            log.info(
                "epoch %d/%d  step %d/%d  loss %.4f  lr %.2e  %.3f s/step", epoch, epochs, done, self.steps, loss, lr, seconds
            )


def fit(
    trainer: Trainer,
    loader: DataLoader,
    validate: Callable[[], dict[str, float]],
    key: str,
    config: dict[str, Any],
    writer: SummaryWriter | None,
    val_freq: int,
    save_freq: int,
) -> None:
    """Train from `trainer.epoch` to the configured last epoch; validate and save every so many epochs, and after the last.

    `validate` returns numbers on rank 0, nothing elsewhere. The number named `key`, one of them or "loss", decides which
    checkpoint is the best: one chosen on the test set, where validation uses it. The last is the result.
    """
    settings, folder = config["trainer"], Path(config["saver"]["save_dir"])
    is_better = operator.le if key == "loss" else operator.ge
    if trainer.process.is_main:
        for leftover in folder.glob(".ckpt*.tmp"):  # of a run that was killed while saving
            leftover.unlink()
    precision = choose_precision(settings["precision"], trainer.process.device)
    model = distribute(trainer.network, trainer.process)
    while trainer.epoch < settings["max_epoch"]:
        report = StepReport(trainer, len(loader), settings, writer)
        run = (trainer.criterion, trainer.optimizer, trainer.process, trainer.epoch)
        loss = train_one_epoch(model, loader, *run, settings["clip_max_norm"], precision, report)
        loss = average(loss, trainer.process)
        trainer.finish_epoch()
        log.info("epoch %d/%d  mean training loss %.4f", trainer.epoch, settings["max_epoch"], loss)
        numbers = {"epoch": trainer.epoch, "loss": loss}
        trainer.history.append(numbers)
        is_last = trainer.epoch == settings["max_epoch"]
        validates, saves = (is_last or trainer.epoch % freq == 0 for freq in (val_freq, save_freq))
        if not (validates or saves):
            continue
        content = trainer.state(config)
        if validates:
            if content:
                save_checkpoint(folder / LAST, content)  # before validating, which can fail: these epochs are safe now
            numbers.update(validate())
        if not content:
            continue
        is_best = key in numbers and is_better(numbers[key], trainer.best_metric)
        content["best_metric"] = trainer.best_metric = numbers[key] if is_best else trainer.best_metric
        names = [LAST] + [BEST] * is_best + [f"ckpt_{trainer.epoch}.pth.tar"] * (validates and config["saver"]["always_save"])
        for name in names:
            save_checkpoint(folder / name, content)
        log.info("saved %s", ", ".join(names))
