"""How a network is run in training: compiled, in several processes, or recorded as a CUDA graph (capture.py)."""

import os
import shutil
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.necks import Standardise
from utils.errors import UserError
from utils.process.distributed import Process


def compile_trained(network: nn.Module, device: torch.device) -> None:
    """Compile the subnets after the neck, which train. Their first steps are slow; the state_dict keeps its keys.

    Raises UserError where there is no C++ compiler, which a CPU's kernels need.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("trainer.compile needs a C++ compiler: install g++ (e.g. apt-get install g++), or set it to False")
    for subnet in list(network.children())[2:]:
        subnet.compile()


def distribute(network: nn.Module, process: Process) -> nn.Module:
    """The network as this process trains it: several processes average their gradients."""
    if process.world_size == 1:
        return network
    norms = gathers_statistics(network)  # which are kept equal; the buffers of a frozen backbone are equal already
    # A backbone's head and its blocks past the last one used are never run, so they never get a gradient.
    unused = any(parameter.requires_grad for subnet in list(network.children())[:2] for parameter in subnet.parameters())
    # A depthwise kernel has an axis of length 1, whose stride is arbitrary: torch copies a few numbers, and warns.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    with warnings.catch_warnings():  # torch 2.14 renames the argument, and older ones do not know the new name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=norms, find_unused_parameters=unused)


def gathers_statistics(network: nn.Module) -> bool:
    """Whether its forward pass in training changes its buffers."""
    gathering = (nn.modules.batchnorm._BatchNorm, Standardise)
    return any(isinstance(module, gathering) and module.training for module in network.modules())


def why_not_captured(network: nn.Module, cfg: dict[str, Any], process: Process) -> str | None:
    """The reason against a training step as a CUDA graph; None where there is none. cfg: the section trainer."""
    reasons = {
        "there is no GPU": process.device.type != "cuda",
        "trainer.cuda_graph is False": not cfg["cuda_graph"],
        "there are several processes": process.world_size > 1,
        "the network is compiled": cfg["compile"],
        "statistics are gathered, which a recording is not checked for": gathers_statistics(network),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
