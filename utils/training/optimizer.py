"""What moves the weights: which of them train, the optimiser, and its learning rate's schedule."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from utils.errors import UserError


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the network's order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def build_optimizer(
    network: nn.Module, cfg: dict[str, Any], lr_scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """lr_scales: by subnet, what its learning rate is multiplied by, where that is not 1."""
    if not (parameters := trained_parameters(network)):
        raise UserError("every subnet is frozen, there is nothing to train: see frozen_layers and net[].frozen")
    fused = {"fused": True} if parameters[0].device.type in ("cpu", "cuda") else {}  # one pass over all weights
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_scales.get(name.split(".")[0], 1.0), []).append(parameter)
    optimizer = getattr(torch.optim, cfg["type"])(
        [{"params": members, "lr_scale": scale} for scale, members in groups.items()], **{**fused, **cfg["kwargs"]}
    )
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    return optimizer


def lr_scales_of(optimizer_state: dict[str, Any]) -> list[float]:
    """Of each group of parameters; checkpoints from before there was this key have none, and mean 1."""
    return [group.get("lr_scale", 1.0) for group in optimizer_state["param_groups"]]


def build_scheduler(
    optimizer: torch.optim.Optimizer, cfg: dict[str, Any], steps: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """steps: of the whole run, which OneCycleLR is spread over."""
    kwargs = dict(cfg["kwargs"])
    if cfg["type"] == "OneCycleLR":
        kwargs["max_lr"] = [kwargs["max_lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        share = kwargs.setdefault("pct_start", 0.3)
        if share * steps == 1:  # torch divides by the rise less one step
            kwargs["pct_start"] = share * (1 - 1e-9)
        kwargs["total_steps"] = steps
    return getattr(torch.optim.lr_scheduler, cfg["type"])(optimizer, **kwargs)
