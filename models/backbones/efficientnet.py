"""EfficientNet and EfficientNet-Lite as backbones: the packages' networks with the outputs of chosen blocks."""

from collections.abc import Sequence

import efficientnet_lite_pytorch
import efficientnet_pytorch
import torch
from torch import Tensor, nn

from models.backbones.folded import FoldedEfficientNet
from models.backbones.specs import SPECS, layer_outputs


def package_network(name: str) -> nn.Module:
    """The network as its package makes it."""
    package = efficientnet_lite_pytorch if "lite" in name else efficientnet_pytorch
    return package.EfficientNet.from_name(name.replace("_", "-"))


class EfficientNet(nn.Module):
    """EfficientNet b0 ... b7, or Lite 0 ... 2, which has no squeeze-and-excitation, and ReLU6 instead of swish.

    Parameters keep the package's names, head and classifier included, so its weight files fit. Head and classifier never run.
    Padding is the package's static "same" padding for the variant's own resolution (380 for b4) at every image size: the
    published numbers depend on it. In eval mode without gradients, as when frozen, FoldedEfficientNet runs instead.
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
        self.folded = FoldedEfficientNet(self, max(self.outblocks))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """{"image": Bx3xHxW} -> {"features": [BxCxhxw for each outlayer]}."""
        image = inputs["image"]
        gradients = torch.is_grad_enabled() and (image.requires_grad or any(weight.requires_grad for weight in self.parameters()))
        outputs = self._block_outputs(image) if self.training or gradients else self.folded(image)
        return {"features": [outputs[index] for index in self.outblocks]}

    def _block_outputs(self, image: Tensor) -> list[Tensor]:
        x = self._swish(self._bn0(self._conv_stem(image)))
        outputs = []
        for index, block in enumerate(self._blocks[: max(self.outblocks) + 1]):
            # Stochastic depth grows with depth. The block applies it in training mode only.
            x = block(x, drop_connect_rate=self.drop_connect_rate * index / len(self._blocks))
            outputs.append(x)
        return outputs
