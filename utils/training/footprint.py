"""The memory of a training step, from its shapes alone: the network runs on the meta device, where tensors have no content."""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from utils.errors import UserError
from utils.process.memory import free_bytes
from utils.training.optimizer import trained_parameters

if TYPE_CHECKING:
    from utils.training.trainer import Trainer

COPIES = 3  # of the trained weights: their gradients, and the two moments of an optimiser

log = logging.getLogger("uniad")


def check_memory(trainer: "Trainer", images: int) -> None:
    """Log what a training step on a CPU needs beside what is taken already. A GPU's lack of memory is an error of its own.

    images: of the training set. Raises UserError where not even what the backward pass reads would fit: the system would end the
    process without a word.
    """
    if trainer.process.device.type != "cpu":
        return
    settings = {**trainer.config["dataset"], **trainer.config["dataset"]["train"]}
    batch, (height, width) = min(settings["batch_size"], images), settings.get("crop") or settings["input_size"]
    names = {"image": 3, "pseudo": 3, "pseudo_mask": 1} if settings.get("pseudo_anomalies") else {"image": 3}
    inputs = {name: torch.empty(batch, channels, height, width, device="meta") for name, channels in names.items()}
    counted = saved_bytes(trainer.network, trainer.criterion, inputs)
    saved, largest = (number * trainer.precision.itemsize // 4 for number in counted)
    trained = sum(parameter.nbytes for parameter in trained_parameters(trainer.network))
    needed, free = saved + 2 * largest + COPIES * trained, free_bytes()
    what = f"a training step of {batch} images of {height}x{width} needs about {needed / 1e9:.1f} GB"
    if free is None:
        log.info(what)
    elif saved > free:
        raise UserError(f"{what}, {free / 1e9:.1f} are free: use a smaller dataset.batch_size or dataset.input_size")
    else:
        log.info("%s, %.1f are free", what, free / 1e9)


def saved_bytes(network: nn.Module, criterion: nn.Module, inputs: dict[str, Tensor]) -> tuple[int, int]:
    """What the forward pass in training keeps for the backward pass beside the weights, and the largest tensor of it, in float32.

    inputs: a batch on the meta device. The network stays as it is.
    """
    state = {name: tensor.detach().to("meta") for name, tensor in network.named_buffers()}
    for name, parameter in network.named_parameters():
        state[name] = parameter.detach().to("meta").requires_grad_(parameter.requires_grad)
    weights = {tensor.untyped_storage()._cdata for tensor in state.values()}
    kept: dict[int, torch.UntypedStorage] = {}  # by identity; held, so that none is used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.random.fork_rng([]), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = criterion(functional_call(network.train(), state, (inputs,)))
    del loss  # until here it keeps what is counted
    sizes = [storage.nbytes() for storage in kept.values()]
    return sum(sizes), max(sizes, default=0)
