"""EfficientNet and EfficientNet-Lite as backbones: the packages' networks with the outputs of chosen blocks."""

from collections.abc import Sequence

import efficientnet_lite_pytorch
import efficientnet_pytorch
import torch
from torch import Tensor, nn

from models.backbones.folded import FoldedBlock, FoldedConv, activate, in_device_layout
from models.backbones.specs import SPECS, layer_outputs


def package_network(name: str) -> nn.Module:
    """The network as its package makes it."""
    package = efficientnet_lite_pytorch if "lite" in name else efficientnet_pytorch
    return package.EfficientNet.from_name(name.replace("_", "-"))


class EfficientNet(nn.Module):
    """EfficientNet b0 ... b7, or Lite 0 ... 2, which has no squeeze-and-excitation, and ReLU6 instead of swish.

    Parameters keep the package's names, head and classifier included, so its weight files fit. Head and classifier never run.
    Padding is the package's static "same" padding for the variant's own resolution (380 for b4) at every image size: the
    published numbers depend on it. In eval mode without gradients, as when frozen, batch norms are folded.
    """

    def __init__(self, name: str, outlayers: Sequence[int]) -> None:
        super().__init__()
        self.outplanes, self.outstrides = layer_outputs(name, outlayers)
        self.outblocks = [SPECS[name].blocks[layer - 1] for layer in outlayers]
        network = package_network(name)
        if "lite" not in name:
            network.set_swish(memory_efficient=False)  # one kernel instead of two; it takes more memory in training only
        for child_name, module in network.named_children():
            self.add_module(child_name, module)
        self.drop_connect_rate = network._global_params.drop_connect_rate
        self.folded_stem = FoldedConv(self._conv_stem, self._bn0)
        self.folded_blocks = [FoldedBlock(block) for block in self._blocks[: max(self.outblocks) + 1]]

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """{"image": Bx3xHxW} -> {"features": [BxCxhxw for each outlayer]}."""
        image = inputs["image"]
        gradients = torch.is_grad_enabled() and (image.requires_grad or any(weight.requires_grad for weight in self.parameters()))
        if self.training or gradients:
            x = self._swish(self._bn0(self._conv_stem(image)))
            # Stochastic depth grows with depth. The block applies it in training mode only.
            rates = [self.drop_connect_rate * index / len(self._blocks) for index in range(len(self.folded_blocks))]
            outputs = [x := block(x, drop_connect_rate=rate) for block, rate in zip(self._blocks, rates, strict=False)]
        else:
            x = activate(self, self.folded_stem(in_device_layout(image)))
            outputs = [x := block(x) for block in self.folded_blocks]
        return {"features": [outputs[index] for index in self.outblocks]}
