"""Training: one epoch, and the loop of epochs with evaluation, checkpoints, resume and stops around it."""

import logging
import math
import operator
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets.loading import ImageLoader
from models.necks import Standardise
from utils.errors import Interrupted, UserError
from utils.process.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    load_checkpoint,
    load_network_state,
    network_state,
    remove_leftovers,
    save_checkpoint,
)
from utils.process.distributed import Process, average, barrier, gather, share_weights, to_device
from utils.process.log import Curves, open_tensorboard
from utils.process.precision import autocast, choose_precision
from utils.process.seeding import random_state, restore_random_state
from utils.process.signals import StopSignals
from utils.process.skipped import report_skipped
from utils.process.versions import versions
from utils.training.optimizer import lr_scales_of, trained_parameters

log = logging.getLogger("uniad")

NEW_RUN = "start a new run (--overwrite or another saver.save_dir), from these weights with saver.init_from"


def train_one_epoch(
    network: nn.Module,
    loader: ImageLoader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    process: Process,
    epoch: int,
    clip_max_norm: float | None = None,
    precision: torch.dtype = torch.float32,
    done: int = 0,
    total: float = 0.0,
    on_step: Callable[[int, float, float], None] = lambda step, loss, total: None,
) -> float:
    """One pass over the loader's data; returns the mean loss over this process's steps.

    `epoch` counts from 0 and decides order and augmentation; the network computes in `precision`. A resumed epoch goes on
    behind `done` steps, whose losses add up to `total`; `on_step(step, loss, total)`, counted from 1, is called after each
    step. Raises UserError with step, loss and files of the batch if the loss is not finite.
    """
    network.train()
    loader.sampler.set_epoch(epoch, start=done * loader.batch_size)
    loader.dataset.epoch = epoch
    hidden = None if process.is_main else True
    progress = tqdm(loader, desc=f"epoch {epoch + 1}", initial=done, leave=False, disable=hidden)
    for step, batch in enumerate(progress, done + 1):
        batch = to_device(batch, process.device)
        with autocast(process.device, precision):
            outputs = network(batch)
        loss = criterion(outputs)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at epoch {epoch + 1}, step {step}; files: {', '.join(batch['filename'])}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_max_norm:
            nn.utils.clip_grad_norm_(trained_parameters(network), clip_max_norm)
        optimizer.step()
        total += value
        on_step(step, value, total)
    return total / len(loader)


def compile_trained(network: nn.Module, device: torch.device) -> None:
    """Have torch.compile make kernels of what follows the neck, all that trains, in its first steps; its state_dict stays.

    Raises UserError where there is no C++ compiler, which a CPU's kernels need.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("trainer.compile needs a C++ compiler: install g++ (e.g. apt-get install g++), or set it to False")
    for subnet in list(network.children())[2:]:
        subnet.compile()


def distribute(network: nn.Module, process: Process) -> nn.Module:
    """The network as this process trains it: with several of them gradients are averaged."""
    if process.world_size == 1:
        return network
    # Statistics gathered in training are kept equal; the buffers of a frozen backbone are so already.
    gathering = (nn.modules.batchnorm._BatchNorm, Standardise)
    norms = any(isinstance(module, gathering) and module.training for module in network.modules())
    # A backbone has parts that are never run, and so never get a gradient: its head, and blocks past the last one used.
    unused = any(parameter.requires_grad for subnet in list(network.children())[:2] for parameter in subnet.parameters())
    # A depthwise kernel has an axis of length 1, which has no stride to speak of: a few numbers are copied, and torch warns.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    with warnings.catch_warnings():  # torch 2.14 renames the argument, and older ones do not know the new name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=norms, find_unused_parameters=unused)


@dataclass
class Trainer:
    """What a training run consists of; `state` and `restore` are the whole of it in a checkpoint."""

    network: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    process: Process
    epoch: int = 0  # finished epochs
    images: int = 0  # that all processes have taken in the running epoch, in
    steps: int = 0  # so many steps
    loss_sum: float = 0.0  # of them, in this process
    best_metric: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # an item an epoch: epoch, loss and what validation found

    def find_step(self, loader: ImageLoader) -> None:
        """Translate the images taken to steps of this loader: those after the last whole step are taken again."""
        images_a_step = loader.batch_size * self.process.world_size
        steps = len(loader) if self.images >= len(loader.dataset) else self.images // images_a_step
        if steps != self.steps:
            log.info("batches are not as before: behind %d images, go on at step %d of %d", self.images, steps + 1, len(loader))
            self.loss_sum *= steps / self.steps
        self.steps = steps

    @property
    def by_step(self) -> bool:
        """Whether the schedule acts every step, not every epoch."""
        return isinstance(self.scheduler, torch.optim.lr_scheduler.OneCycleLR)

    def finish_step(self) -> None:
        if self.by_step and self.scheduler.last_epoch < self.scheduler.total_steps - 1:  # the last step's rate has no next one
            self.step_schedule()

    def finish_epoch(self) -> None:
        # The published loop steps with the epoch's 0-based number, so StepLR(800) acts one epoch late: no step after the first.
        if self.epoch > 0 and not self.by_step:
            self.step_schedule()
        self.epoch += 1
        self.images, self.steps, self.loss_sum = 0, 0, 0.0

    def step_schedule(self) -> None:
        with warnings.catch_warnings():  # torch warns where the optimiser has made no step; it has, in the run before
            warnings.simplefilter("ignore", UserWarning)
            self.scheduler.step()

    def state(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The checkpoint's content, on rank 0; None elsewhere. Every process must call this."""
        gathered = gather((random_state(), self.loss_sum), self.process)
        if gathered is None:
            return None
        states, loss_sums = map(list, zip(*gathered, strict=True))
        return {
            "epoch": self.epoch,
            "running_epoch": {"images": self.images, "steps": self.steps, "loss_sums": loss_sums},
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

    def restore(self, path: Path, config: dict[str, Any]) -> None:
        """Go on from a checkpoint: ours restores everything, a published one weights, epoch and best metric.

        Where the checkpoint's optimiser, schedule or key metric is not that of `config`, a line says so.
        """
        content = load_checkpoint(path)
        load_network_state(self.network, content["state_dict"], path)
        if "epoch" not in content:
            raise UserError(f"{path}: holds weights only, there is no run to go on with; {NEW_RUN}")
        self.epoch, self.best_metric = int(content["epoch"]), float(content.get("best_metric", self.best_metric))
        self.history = list(content.get("history", []))
        if "scheduler" not in content:
            if self.by_step:
                raise UserError(f"{path}: of the published code, which has no OneCycleLR to go on with; {NEW_RUN}")
            for _ in range(self.epoch - 1):
                self.step_schedule()
            log.info("%s is of the published code: weights and epoch are taken, its optimiser state is left out", path)
            return
        for part, present in (("optimizer", self.optimizer), ("lr_scheduler", self.scheduler)):
            was, now = content["config"]["trainer"][part]["type"], type(present).__name__
            if was != now:
                raise UserError(f"{path}: trained with {was}, which {now} cannot go on from; {NEW_RUN}")
        was, now = (lr_scales_of(state) for state in (content["optimizer"], self.optimizer.state_dict()))
        if was != now:
            raise UserError(f"{path}: net[].lr_scale was {was} of what it trained, here it is {now}; {NEW_RUN}")
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise UserError(f"{path}: its optimiser does not suit this configuration ({error})") from None
        if self.by_step and content["scheduler"]["total_steps"] != self.scheduler.total_steps:
            raise UserError(
                f"{path}: its OneCycleLR is spread over {content['scheduler']['total_steps']} steps, this run has "
                f"{self.scheduler.total_steps}: keep max_epoch, batch size, processes and training images, or {NEW_RUN}"
            )
        self.scheduler.load_state_dict(content["scheduler"])
        for part in ("optimizer", "lr_scheduler"):
            if content["config"]["trainer"][part] != config["trainer"][part]:
                log.warning("%s goes on with its own trainer.%s, not with the configuration's; for that %s", path, part, NEW_RUN)
        was, now = (side["evaluator"]["key_metric"] if side.get("evaluator") else None for side in (content["config"], config))
        if was != now:
            log.warning("%s: its best checkpoint is by %s; by %s the best is looked for from here on", path, was, now)
            self.best_metric = -math.inf
        finished = {"images": 0, "steps": 0, "loss_sums": [0.0] * len(content["random_states"])}
        running = content.get("running_epoch", finished)  # checkpoints lacked it when they were written between epochs only
        self.images, self.steps, loss_sums = running["images"], running["steps"], running["loss_sums"]
        if len(loss_sums) == self.process.world_size:
            self.loss_sum = loss_sums[self.process.rank]
            restore_random_state(content["random_states"][self.process.rank])
        else:
            self.loss_sum = sum(loss_sums) / len(loss_sums)
            log.info("%s is of %d processes: random states start anew", path, len(loss_sums))


@dataclass
class Run:
    """A trainer at work: what it says, when it saves, and how it stops when it is asked to."""

    trainer: Trainer
    loader: ImageLoader
    config: dict[str, Any]
    writer: Curves | None
    signals: StopSignals
    started: float = 0.0  # the time at which
    first: int = 0  # this step of the running epoch was to come

    def train_epoch(self, model: nn.Module, precision: torch.dtype) -> float:
        """Train the running epoch to its end; returns its mean loss over all processes."""
        trainer, clip = self.trainer, self.config["trainer"]["clip_max_norm"]
        self.started, self.first = time.monotonic(), trainer.steps
        parts = (trainer.criterion, trainer.optimizer, trainer.process)
        position = (trainer.steps, trainer.loss_sum)
        loss = train_one_epoch(model, self.loader, *parts, trainer.epoch, clip, precision, *position, self.after_step)
        report_skipped(self.loader, trainer.process, f"epoch {trainer.epoch + 1}/{self.config['trainer']['max_epoch']}")
        return average(loss, trainer.process)

    @property
    def total(self) -> int:
        """Steps since the first epoch."""
        return self.trainer.epoch * len(self.loader) + self.trainer.steps

    def after_step(self, step: int, loss: float, total: float) -> None:
        trainer, freq = self.trainer, self.config["saver"]["save_freq_step"]
        trainer.steps, trainer.loss_sum = step, total
        trainer.images = min(step * self.loader.batch_size * trainer.process.world_size, len(self.loader.dataset))
        self.report(loss)  # with the rate of this step
        trainer.finish_step()
        self.save_or_stop(bool(freq) and self.total % freq == 0)

    def report(self, loss: float) -> None:
        """A log line every print_freq, TensorBoard scalars every tb_freq steps, means over processes.

        Both counts start at step 1, and a line closes every epoch.
        """
        trainer, cfg, done, steps = self.trainer, self.config["trainer"], self.trainer.steps, len(self.loader)
        prints = done % cfg["print_freq_step"] == 0 or done == steps
        draws = self.total % cfg["tb_freq_step"] == 0
        if not (prints or draws):
            return
        loss = average(loss, trainer.process)
        lr = trainer.optimizer.param_groups[0]["lr"]
        if draws:
            self.draw({"loss_train": loss, "lr": lr})
        if prints:
            seconds = (time.monotonic() - self.started) / (done - self.first)
            epoch, epochs = trainer.epoch + 1, cfg["max_epoch"]
            log.info("epoch %d/%d  step %d/%d  loss %.4f  lr %.2e  %.3f s/step", epoch, epochs, done, steps, loss, lr, seconds)

    def draw(self, numbers: dict[str, float]) -> None:
        """Give the finite ones to TensorBoard, at the present step."""
        for name, value in numbers.items():
            if self.writer and math.isfinite(value):
                self.writer.add_scalar(name, value, self.total)

    def save_or_stop(self, due: bool, names: tuple[str, ...] = (LAST,)) -> None:
        """Save where it is due, or where a signal asks to stop: then raise Interrupted. Every process must call it."""
        trainer, saver = self.trainer, self.config["saver"]
        number = self.signals.agreed(trainer.process) if trainer.epoch < self.config["trainer"]["max_epoch"] else 0
        if due or number:
            self.save(names)
            log.info("saved %s", ", ".join(names))
        if number:
            barrier(trainer.process)  # no process leaves before the file is there
            again = "run the same command again" if saver["auto_resume"] else "run it again with saver.auto_resume=True"
            raise Interrupted(
                f"{signal.Signals(number).name}: stopped at epoch {trainer.epoch + 1} behind step {trainer.steps} of "
                f"{len(self.loader)}, saved in {saver['save_dir']}/{LAST}; {again} to go on (without --overwrite)"
            )

    def save(self, names: tuple[str, ...] = (LAST,)) -> None:
        content, folder = self.trainer.state(self.config), Path(self.config["saver"]["save_dir"])
        if content is None:
            return
        if self.writer:
            self.writer.flush()  # what a resumed run takes for drawn
        for name in names:
            save_checkpoint(folder / name, content, folder / PREVIOUS if name == LAST else None)


def fit(
    trainer: Trainer,
    loader: ImageLoader,
    validate: Callable[[], dict[str, float]],
    key: str,
    config: dict[str, Any],
    val_freq: int,
    save_freq: int,
) -> None:
    """Train from where `trainer` is to the configured last epoch; validate and save every so many epochs, and after the last.

    `validate` returns numbers on rank 0, nothing elsewhere. The number named `key`, one of them or "loss", decides which
    checkpoint is the best: one chosen on the test set, where validation uses it. The last is the result. SIGTERM and
    SIGUSR1 are acted on after a step, and at the end of an epoch that saves: one that comes during validation waits for it.
    Raises Interrupted then. After the last epoch nothing is left to interrupt.
    """
    settings, saver, process = config["trainer"], config["saver"], trainer.process
    is_better = operator.le if key == "loss" else operator.ge
    if process.is_main:
        remove_leftovers(saver["save_dir"])
    precision = choose_precision(settings["precision"])
    if settings["compile"]:
        compile_trained(trainer.network, process.device)
    model = distribute(trainer.network, process)
    trainer.find_step(loader)
    next_step = trainer.epoch * len(loader) + trainer.steps + 1
    with StopSignals() as signals, open_tensorboard(saver["log_dir"], process, next_step) as writer:
        run = Run(trainer, loader, config, writer, signals)
        while trainer.epoch < settings["max_epoch"]:
            loss = run.train_epoch(model, precision)
            number = trainer.epoch + 1
            validates, saves = (number == settings["max_epoch"] or number % freq == 0 for freq in (val_freq, save_freq))
            if validates:
                run.save()  # before validating, which can fail or be killed: a resumed run has no step left and validates
            trainer.finish_epoch()
            log.info("epoch %d/%d  mean training loss %.4f", number, settings["max_epoch"], loss)
            numbers = {"epoch": number, "loss": loss}
            trainer.history.append(numbers)
            if validates:
                share_weights(trainer.network, process)  # statistics of batch norms that train differ since the last step
                found = validate()
                run.draw({f"test/{name}": value for name, value in found.items()})
                numbers.update(found)
            is_due = validates or saves
            is_best = is_due and key in numbers and is_better(numbers[key], trainer.best_metric)
            if is_best:
                trainer.best_metric = numbers[key]
            every = [f"ckpt_{number}.pth.tar"] * (validates and saver["always_save"])
            run.save_or_stop(is_due, (LAST, *[BEST] * is_best, *every))
