"""A training run in a checkpoint: what is saved of it, what may be resumed, and how."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.config import stored_config
from utils.errors import UserError
from utils.process.checkpoint import load_checkpoint, load_network_state, network_state
from utils.process.distributed import gather
from utils.process.seeding import random_state, restore_random_state
from utils.process.versions import versions
from utils.training.optimizer import lr_scales_of, step_scheduler

if TYPE_CHECKING:
    from utils.training.trainer import Trainer

log = logging.getLogger("uniad")

NEW_RUN = "start a new run (--overwrite or another saver.save_dir), from these weights with saver.init_from"


def trainer_state(trainer: "Trainer") -> dict[str, Any] | None:
    """The checkpoint's content, on rank 0; None elsewhere. Every process must call this."""
    gathered = gather((random_state(), trainer.loss_sum), trainer.process)
    if gathered is None:
        return None
    random_states, loss_sums = map(list, zip(*gathered, strict=True))
    return {
        "epoch": trainer.epoch,
        "running_epoch": {"images": trainer.images_seen, "steps": trainer.steps_done, "loss_sums": loss_sums},
        "arch": trainer.config["net"],
        "state_dict": network_state(trainer.network),
        "best_metric": trainer.best_metric,
        "history": trainer.history,
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "random_states": random_states,
        "config": trainer.config,
        "versions": versions(),
    }


def resume(trainer: "Trainer", path: Path) -> None:
    """Go on from a checkpoint: the last restores everything, the best and an epoch's all but the optimiser's state, a published
    one weights, epoch and best metric.

    Raises UserError where the checkpoint cannot go on under the trainer's configuration.
    """
    content = load_checkpoint(path)
    load_network_state(trainer.network, content["state_dict"], path)
    if "epoch" not in content:
        raise UserError(f"{path}: holds weights only, there is no run to go on with; {NEW_RUN}")
    trainer.epoch, trainer.best_metric = int(content["epoch"]), float(content.get("best_metric", trainer.best_metric))
    trainer.history = list(content.get("history", []))
    if "scheduler" not in content:
        resume_published(trainer, path)
        return
    trained = stored_config(content.get("config"), path, ("trainer",))
    try:
        check_resumable(trainer, content, trained, path)
        restore_optimizer(trainer, content)
        restore_position(trainer, content, path)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: its training state does not suit this configuration ({reason}); {NEW_RUN}") from None
    if not content["optimizer"]["state"]:
        log.warning("%s holds no state of the optimiser, as only the last checkpoint does: it starts new", path)
    warn_of_changes(trainer, trained, path)


def restore_optimizer(trainer: "Trainer", content: dict[str, Any]) -> None:
    """Optimiser and schedule. Raises ValueError, or what torch raises, for a state that is not of their form."""
    for name, part in (("optimizer", trainer.optimizer), ("scheduler", trainer.scheduler)):
        own, given = part.state_dict(), content[name]
        if not has_form(own.get("param_groups", own), given.get("param_groups", given)):
            raise ValueError(f"another {name}'s")
        part.load_state_dict(given if "param_groups" in own else {key: given[key] for key in own if key in given})
    for parameter, state in trainer.optimizer.state.items():
        if any(isinstance(t, Tensor) and t.dim() and t.shape != parameter.shape for t in state.values()):
            raise ValueError("moments of other shapes than the weights")


def has_form(own: Any, given: Any) -> bool:
    """Whether numbers stand where `own` has numbers, and so on; versions of torch differ in the keys."""
    if isinstance(own, dict) and isinstance(given, dict):
        return all(has_form(value, given[key]) for key, value in own.items() if key in given)
    if isinstance(own, list | tuple) and isinstance(given, list | tuple):
        return len(own) == len(given) and all(map(has_form, own, given))
    numbers = all(isinstance(value, int | float) for value in (own, given))
    return numbers or None in (own, given) or type(own) is type(given)


def resume_published(trainer: "Trainer", path: Path) -> None:
    """The published code saves no schedule, and its optimiser's parameters in random order."""
    if trainer.schedules_steps:
        raise UserError(
            f"{path}: of the published code, which has no {type(trainer.scheduler).__name__} to go on with; {NEW_RUN}"
        )
    for _ in range(trainer.epoch - 1):
        step_scheduler(trainer.scheduler)
    log.info("%s is of the published code: weights and epoch are taken, its optimiser state is left out", path)


def check_resumable(trainer: "Trainer", content: dict[str, Any], trained: dict[str, Any], path: Path) -> None:
    """Raises UserError where optimiser, schedule or learning rates are of another kind than the configuration's."""
    for part, present in (("optimizer", trainer.optimizer), ("lr_scheduler", trainer.scheduler)):
        was, now = trained["trainer"][part]["type"], type(present).__name__
        if was != now:
            raise UserError(f"{path}: trained with {was}, which {now} cannot go on from; {NEW_RUN}")
    was, now = (lr_scales_of(state) for state in (content["optimizer"], trainer.optimizer.state_dict()))
    if was != now:
        raise UserError(f"{path}: trained with net[].lr_scale {was}, this configuration has {now}; {NEW_RUN}")
    if trainer.schedules_steps and content["scheduler"]["total_steps"] != trainer.scheduler.total_steps:
        name, steps = type(trainer.scheduler).__name__, content["scheduler"]["total_steps"]
        raise UserError(
            f"{path}: its {name} is spread over {steps} steps, this run has {trainer.scheduler.total_steps}: "
            f"keep max_epoch, batch size, processes and training images, or {NEW_RUN}"
        )


def warn_of_changes(trainer: "Trainer", trained: dict[str, Any], path: Path) -> None:
    """One line for each changed value that the resumed run does not take, and for another key metric, which it takes."""
    for part in ("optimizer", "lr_scheduler"):
        if trained["trainer"][part] != trainer.config["trainer"][part]:
            log.warning("%s keeps its own trainer.%s, the configuration's is not used; for that %s", path, part, NEW_RUN)
    was, now = (side["evaluator"]["key_metric"] if side.get("evaluator") else None for side in (trained, trainer.config))
    if was != now:
        log.warning("%s: its best checkpoint is by %s; from here on the best is by %s", path, was, now)
        trainer.best_metric = -math.inf


def restore_position(trainer: "Trainer", content: dict[str, Any], path: Path) -> None:
    """The place in the current epoch, and the random states where there are as many processes as before."""
    finished = {"images": 0, "steps": 0, "loss_sums": [0.0] * len(content["random_states"])}
    running = content.get("running_epoch", finished)  # early checkpoints were written between epochs only, and lack it
    trainer.images_seen, trainer.steps_done, loss_sums = running["images"], running["steps"], running["loss_sums"]
    if bool(trainer.images_seen) != bool(trainer.steps_done) or not loss_sums:
        raise ValueError("images without steps")
    if len(loss_sums) == trainer.process.world_size:
        trainer.loss_sum = loss_sums[trainer.process.rank]
        restore_random_state(content["random_states"][trainer.process.rank])
    else:
        trainer.loss_sum = sum(loss_sums) / len(loss_sums)
        log.info("%s is of %d processes: random states start new", path, len(loss_sums))
