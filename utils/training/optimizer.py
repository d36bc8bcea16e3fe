"""The parameters that train, their optimiser, and the schedule of its learning rate."""

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from utils import optim
from utils.errors import UserError

EACH_STEP = (optim.OneCycleLR, optim.WarmupCosineLR)  # schedules over the steps of a run; others act after each epoch


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the network's order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def build_optimizer(
    network: nn.Module, cfg: dict[str, Any], lr_scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """lr_scales: the factor of each subnet's learning rate, by the subnet's name; 1 where it is not given."""
    if not (parameters := trained_parameters(network)):
        raise UserError("every subnet is frozen, there is nothing to train: see frozen_layers and net[].frozen")
    can_fuse = cfg["type"] != "StableAdamW" and parameters[0].device.type in ("cpu", "cuda")
    fused = {"fused": True} if can_fuse else {}  # one pass over all weights
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_scales.get(name.split(".")[0], 1.0), []).append(parameter)
    optimizer = getattr(optim, cfg["type"])(
        [{"params": members, "lr_scale": scale} for scale, members in groups.items()], **{**fused, **cfg["kwargs"]}
    )
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    return optimizer


def lr_scales_of(optimizer_state: dict[str, Any]) -> list[float]:
    """The factor of each parameter group; early checkpoints have none, which means 1."""
    return [group.get("lr_scale", 1.0) for group in optimizer_state["param_groups"]]


def build_scheduler(
    optimizer: torch.optim.Optimizer, cfg: dict[str, Any], steps: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """steps: the length of the whole run, over which a schedule that acts each step is spread."""
    kwargs = dict(cfg["kwargs"])
    if cfg["type"] == "OneCycleLR":
        kwargs["max_lr"] = [kwargs["max_lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        share = kwargs.setdefault("pct_start", 0.3)
        if share * steps == 1:  # torch divides by the rise less one step
            kwargs["pct_start"] = share * (1 - 1e-9)
    scheduler = getattr(optim, cfg["type"])
    if issubclass(scheduler, EACH_STEP):
        kwargs["total_steps"] = steps
    return scheduler(optimizer, **kwargs)


def acts_each_step(scheduler: torch.optim.lr_scheduler.LRScheduler) -> bool:
    """Whether the schedule acts every step of `scheduler.total_steps`, not every epoch."""
    return isinstance(scheduler, EACH_STEP)


def step_scheduler(scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """One step of the schedule; one that acts each step has none after the run's last step."""
    if acts_each_step(scheduler) and scheduler.last_epoch >= scheduler.total_steps - 1:
        return
    with warnings.catch_warnings():  # torch warns where the optimiser has made no step; a resumed run made it before
        warnings.simplefilter("ignore", UserWarning)
        scheduler.step()
