"""Training: `train` calls `train_epoch` calls `train_step`, with evaluation, checkpoints and stops around them."""

import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.loading import ImageLoader
from utils.errors import Interrupted, UserError
from utils.process.checkpoint import BEST, LAST, PREVIOUS, remove_leftovers, save_checkpoint
from utils.process.distributed import SINGLE_PROCESS, Process, average, barrier, share_weights, to_device
from utils.process.log import Curves, open_tensorboard
from utils.process.precision import autocast, choose_precision
from utils.process.signals import StopSignals
from utils.process.skipped import report_skipped
from utils.training.acceleration import compile_trained, distribute, why_not_captured
from utils.training.capture import CapturedStep, Step
from utils.training.feature_cache import hold_features
from utils.training.optimizer import acts_each_step, step_scheduler, trained_parameters
from utils.training.pace import Pace, in_words
from utils.training.resume import trainer_state

log = logging.getLogger("uniad")


class UnreadStep(NamedTuple):
    """A step that is done, or launched on a GPU, and whose loss nobody has read."""

    loss: Tensor  # on the device
    filenames: list[str]
    number: int  # in its epoch
    total: int  # since the first epoch
    lr: float


@dataclass
class Trainer:
    """A network in training, and how far it has come. Every process of a run must make the same calls.

    A notebook trains epoch by epoch, without evaluation; checkpoints are written only with saver.save_freq_step:

        trainer = Trainer(network, criterion, optimizer, scheduler, to_plain(load_config(path)))
        loss = trainer.train_epoch(build_dataloader(...))
        trainer.finish_epoch(loss)  # before the next one

    Args:
        config: the whole configuration as plain dicts; trainer and saver are read here.
        best_by: the number that decides which checkpoint is the best: one of those that `validate` returns (the largest is
            best), or "loss" (the smallest).
    """

    network: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    config: dict[str, Any]
    process: Process = SINGLE_PROCESS
    best_by: str = "loss"

    # The position: what a checkpoint holds beside weights, optimiser, schedule and random states.
    epoch: int = 0  # finished epochs
    images_seen: int = 0  # in the current epoch, all processes
    steps_done: int = 0  # in the current epoch
    loss_sum: float = 0.0  # of these steps, in this process, as far as losses were read
    history: list[dict[str, float]] = field(default_factory=list)  # one item per epoch: epoch, loss and what validation found

    unread: list[UnreadStep] = field(default_factory=list)  # a GPU need not wait until they are read
    writer: Curves | None = None  # TensorBoard, on rank 0

    def __post_init__(self) -> None:
        self.best_metric = math.inf if self.best_by == "loss" else -math.inf
        self.precision = choose_precision(self.config["trainer"]["precision"])
        self.model = self.network  # what a step calls: the network, or the network inside DistributedDataParallel
        self.run: Step = self.loss_and_gradients  # or its recording
        self.signals, self.pace = StopSignals(), Pace()

    def train(
        self, loader: ImageLoader, validate: Callable[[], dict[str, float]] = dict, val_freq: int = 1, save_freq: int = 1
    ) -> None:
        """Train to the configured last epoch or step; validate and save every so many epochs, and after the last.

        `validate` returns numbers on rank 0 and an empty dict elsewhere. The last checkpoint is the result. SIGTERM and SIGUSR1
        take effect after the current step, those during validation after it: then Interrupted is raised.
        """
        last, saver = self.epochs(loader), self.config["saver"]
        if self.process.is_main:
            remove_leftovers(saver["save_dir"])
        if self.config["trainer"]["compile"]:
            compile_trained(self.network, self.process.device)
        self.model = distribute(self.network.train(), self.process)
        self.capture(loader.batch_size)
        hold_features(loader.dataset, self.process.device)
        self.align_to_loader(loader)
        next_step = self.total_steps(loader) + 1
        loader.while_waiting = lambda: self.stop_while_waiting(loader)
        with StopSignals() as self.signals, open_tensorboard(saver["log_dir"], self.process, next_step) as self.writer:
            while self.epoch < last:
                loss = self.train_epoch(loader)
                validates, saves = (self.epoch + 1 == last or (self.epoch + 1) % freq == 0 for freq in (val_freq, save_freq))
                if validates:
                    self.save()  # before validation, which can fail or be killed: a resumed run has no step left and validates
                self.finish_epoch(loss)
                log.info("epoch %d/%d  mean training loss %.4f", self.epoch, last, loss)
                if validates:
                    self.run_validation(validate, self.total_steps(loader))
                self.save_or_stop(loader, self.due_checkpoints(validates, saves))

    def train_epoch(self, loader: ImageLoader) -> float:
        """Train the current epoch to its end, a resumed one after the steps done; returns its mean loss over all processes.

        Raises UserError with step, loss and files of the batch if a loss is not finite, where losses are read.
        """
        self.model.train()
        loader.sampler.set_epoch(self.epoch, start=self.steps_done * loader.batch_size)
        loader.dataset.epoch = self.epoch  # decides the augmentation
        started, first, save_freq = time.monotonic(), self.steps_done, self.config["saver"]["save_freq_step"]
        hidden = None if self.process.is_main else True
        steps = min(len(loader), self.last_step - self.epoch * len(loader))
        batches = islice(loader, steps - first)
        for batch in tqdm(batches, f"epoch {self.epoch + 1}", total=steps, initial=first, leave=False, disable=hidden):
            batch["step"] = torch.full((), self.total_steps(loader), device=self.process.device)  # a loss may change with it
            loss = self.train_step(to_device(batch, self.process.device))
            self.steps_done += 1
            self.images_seen = min(self.steps_done * loader.batch_size * self.process.world_size, len(loader.dataset))
            lr = self.optimizer.param_groups[0]["lr"]
            self.unread.append(UnreadStep(loss, batch["filename"], self.steps_done, self.total_steps(loader), lr))
            if self.prints(loader):
                self.log_step(started, self.steps_done - first, loader)
            if seconds := self.pace.count_step(self.read_losses):
                self.log_time_left(seconds, loader)
            if self.schedules_steps:
                step_scheduler(self.scheduler)
            is_due = bool(save_freq) and self.total_steps(loader) % save_freq == 0
            self.save_or_stop(loader, [LAST] if is_due else [])
        report_skipped(loader, self.process, f"epoch {self.epoch + 1}/{self.epochs(loader)}")
        return average(self.loss_sum / steps, self.process)

    def train_step(self, batch: dict[str, Any]) -> Tensor:
        """One optimiser step on a batch; returns its loss. Nothing in it waits for a GPU."""
        loss = self.run(batch)
        self.optimizer.step()
        return loss

    def loss_and_gradients(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch; clipped gradients are left in the parameters."""
        with autocast(self.process.device, self.precision):
            outputs = self.model(batch)
        loss: Tensor = self.criterion(outputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_max_norm := self.config["trainer"]["clip_max_norm"]:
            nn.utils.clip_grad_norm_(trained_parameters(self.network), clip_max_norm)
        return loss.detach()

    def capture(self, batch_size: int) -> None:
        """On a GPU, let full batches be run as one CUDA graph, or say why they are not."""
        reason = why_not_captured(self.network, self.config["trainer"], self.process)
        if reason is None:
            parameters = trained_parameters(self.network)
            self.run = CapturedStep(self.loss_and_gradients, parameters, batch_size, self.process.device)
        elif self.process.device.type == "cuda":
            log.info("a training step is launched operation by operation: %s", reason)

    def read_losses(self) -> None:
        """Wait for the steps launched so far, check, add up and draw their losses.

        Raises UserError with step, loss and files of the first that is not finite.
        """
        values = torch.stack([step.loss for step in self.unread]).tolist() if self.unread else []
        for step, value in zip(self.unread, values, strict=True):
            if not math.isfinite(value):
                where = f"epoch {self.epoch + 1}, step {step.number}"
                raise UserError(f"the loss is {value} at {where}; files: {', '.join(step.filenames)}")
            self.loss_sum += value
            if step.total % self.config["trainer"]["tb_freq_step"] == 0:
                self.log_scalars({"loss_train": average(value, self.process), "lr": step.lr}, step.total)
        self.unread.clear()

    def finish_epoch(self, loss: float) -> None:
        """Count the epoch, note its loss, and step a schedule that acts once an epoch."""
        # As in the published code there is no step after the first epoch, so StepLR(800) acts one epoch late.
        if self.epoch > 0 and not self.schedules_steps:
            step_scheduler(self.scheduler)
        self.epoch += 1
        self.images_seen, self.steps_done, self.loss_sum = 0, 0, 0.0
        self.history.append({"epoch": self.epoch, "loss": loss})

    def run_validation(self, validate: Callable[[], dict[str, float]], step: int) -> None:
        """Add what `validate` finds to the epoch's item in the history, and to TensorBoard."""
        share_weights(self.network, self.process)  # statistics of trained batch norms differ between processes
        found = validate()
        self.log_scalars({f"test/{name}": value for name, value in found.items()}, step)
        self.history[-1].update(found)

    def due_checkpoints(self, validates: bool, saves: bool) -> list[str]:
        """The checkpoints to write at the end of an epoch; updates the best metric."""
        if not (validates or saves):
            return []
        number, names = self.history[-1].get(self.best_by, math.nan), [LAST]
        if number <= self.best_metric if self.best_by == "loss" else number >= self.best_metric:
            self.best_metric = number
            names.append(BEST)
        if validates and self.config["saver"]["always_save"]:
            names.append(f"ckpt_{self.epoch}.pth.tar")
        return names

    def save_or_stop(self, loader: ImageLoader, names: Sequence[str]) -> None:
        """Save under `names`. Where a signal asks to stop, save in any case and raise Interrupted."""
        # After the last epoch nothing is left to interrupt.
        number = self.signals.agreed(self.process) if self.epoch < self.epochs(loader) else 0
        if number and not names:
            names = [LAST]
        if names:
            self.save(names)
            log.info("saved %s", ", ".join(names))
        if not number:
            return
        barrier(self.process)  # no process leaves before the file is there
        saver = self.config["saver"]
        again = "run the same command again" if saver["auto_resume"] else "run it again with saver.auto_resume=True"
        raise Interrupted(
            f"{signal.Signals(number).name}: stopped at epoch {self.epoch + 1} after step {self.steps_done} of {len(loader)}, "
            f"saved in {saver['save_dir']}/{LAST}; {again} to go on (without --overwrite)"
        )

    def stop_while_waiting(self, loader: ImageLoader) -> None:
        """Obey a signal although no data come; several processes cannot agree then, and keep the last checkpoint."""
        if self.process.world_size == 1:
            self.save_or_stop(loader, [])
        elif self.signals.received:
            raise Interrupted(
                f"{signal.Signals(self.signals.received).name}: stopped while no data came; the last checkpoint stays"
            )

    def save(self, names: Sequence[str] = (LAST,)) -> None:
        self.read_losses()  # no checkpoint is written after a loss that is not finite
        content, folder = trainer_state(self), Path(self.config["saver"]["save_dir"])
        if content is None:  # rank 0 writes
            return
        if self.writer:
            self.writer.flush()  # a resumed run counts on the points up to here
        smaller = content | {"optimizer": content["optimizer"] | {"state": {}}}  # by twice the trained weights
        for name in names:  # an exact resume needs the last one, or the one before it
            is_last = name == LAST
            save_checkpoint(folder / name, content if is_last else smaller, folder / PREVIOUS if is_last else None)

    def prints(self, loader: ImageLoader) -> bool:
        """Whether a log line is due: every print_freq_step, counted from step 1 of an epoch, and at its end."""
        is_last = self.steps_done == len(loader) or self.total_steps(loader) == self.last_step
        return is_last or self.steps_done % self.config["trainer"]["print_freq_step"] == 0

    def log_step(self, started: float, steps: int, loader: ImageLoader) -> None:
        """Read the losses; a log line with the last step's loss, mean over processes, and the rate of `steps` since `started`."""
        last = self.unread[-1]
        self.read_losses()
        loss, seconds = average(last.loss.item(), self.process), (time.monotonic() - started) / steps
        where = (self.epoch + 1, self.epochs(loader), self.steps_done, len(loader))
        log.info("epoch %d/%d  step %d/%d  loss %.4f  lr %.2e  %.3f s/step", *where, loss, last.lr, seconds)

    def log_time_left(self, seconds: float, loader: ImageLoader) -> None:
        steps = run_steps(self.config["trainer"], len(loader)) - self.total_steps(loader)
        if steps > 0:
            log.info("about %s left: %d steps of %.3f s, evaluations not counted", in_words(steps * seconds), steps, seconds)

    def log_scalars(self, numbers: dict[str, float], step: int) -> None:
        """Give the finite ones to TensorBoard."""
        for name, value in numbers.items():
            if self.writer and math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def align_to_loader(self, loader: ImageLoader) -> None:
        """Translate the images seen into steps of this loader; those of an unfinished step are read again."""
        images_a_step = loader.batch_size * self.process.world_size
        steps = len(loader) if self.images_seen >= len(loader.dataset) else self.images_seen // images_a_step
        if steps != self.steps_done:
            log.info("the batch size differs: after %d images, go on at step %d of %d", self.images_seen, steps + 1, len(loader))
            self.loss_sum *= steps / self.steps_done
        self.steps_done = steps

    def total_steps(self, loader: ImageLoader) -> int:
        """Steps since the first epoch."""
        return min(self.epoch * len(loader) + self.steps_done, self.last_step)

    def epochs(self, loader: ImageLoader) -> int:
        return count_epochs(self.config["trainer"], len(loader))

    @property
    def last_step(self) -> float:
        return self.config["trainer"]["max_step"] or math.inf

    @property
    def schedules_steps(self) -> bool:
        """Whether the schedule acts every step, not every epoch."""
        return acts_each_step(self.scheduler)


def run_steps(cfg: dict[str, Any], epoch_steps: int) -> int:
    """The steps of a whole run: up to max_epoch or max_step, whichever comes first. cfg: the section trainer."""
    limits = (cfg["max_epoch"] and cfg["max_epoch"] * epoch_steps, cfg["max_step"])
    return min(limit for limit in limits if limit)


def count_epochs(cfg: dict[str, Any], epoch_steps: int) -> int:
    """The epochs of a whole run; max_step may end the last one early."""
    return -(-run_steps(cfg, epoch_steps) // epoch_steps)
