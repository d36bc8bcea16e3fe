"""EfficientNet and EfficientNet-Lite as backbones: the packages' networks with the outputs of chosen blocks."""

from collections.abc import Sequence
from typing import Any

import efficientnet_lite_pytorch
import efficientnet_pytorch
import torch
from torch import Tensor

from models.backbones.folded import FoldedEfficientNet
from models.backbones.specs import SPECS, layer_outputs


class _BlockOutputs:
    """Mixin for a package's EfficientNet: forward returns the outputs of the last blocks of `outlayers`.

    Parameters keep the package's names, head and classifier included, so its weight files fit. Head and classifier never run.
    Padding is the package's static "same" padding for the variant's own resolution (380 for b4) at every image size: the
    published numbers depend on it. In eval mode without gradients, as when frozen, FoldedEfficientNet runs instead.
    """

    def __init__(self, params: tuple[Any, Any], name: str, outlayers: Sequence[int]) -> None:
        outplanes, outstrides = layer_outputs(name, outlayers)
        super().__init__(*params)
        self.outplanes, self.outstrides = outplanes, outstrides
        self.outblocks = [SPECS[name].blocks[layer - 1] for layer in outlayers]
        self.folded = FoldedEfficientNet(self, max(self.outblocks))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """{"image": Bx3xHxW} -> {"features": [BxCxhxw for each outlayer]}."""
        if self.training or self._takes_gradients(inputs["image"]):
            outputs = self._block_outputs(inputs["image"])
        else:
            outputs = self.folded(inputs["image"])
        return {"features": [outputs[index] for index in self.outblocks]}

    def _takes_gradients(self, image: Tensor) -> bool:
        return torch.is_grad_enabled() and (image.requires_grad or any(weight.requires_grad for weight in self.parameters()))

    def _block_outputs(self, image: Tensor) -> list[Tensor]:
        x = self._swish(self._bn0(self._conv_stem(image)))
        outputs = []
        for index, block in enumerate(self._blocks[: max(self.outblocks) + 1]):
            # Stochastic depth grows with depth. The block applies it in training mode only.
            x = block(x, drop_connect_rate=self._global_params.drop_connect_rate * index / len(self._blocks))
            outputs.append(x)
        return outputs


class EfficientNet(_BlockOutputs, efficientnet_pytorch.EfficientNet):
    """EfficientNet b0 ... b7."""

    def __init__(self, name: str, outlayers: Sequence[int]) -> None:
        super().__init__(efficientnet_pytorch.get_model_params(_package_name(name), None), name, outlayers)
        self.set_swish(memory_efficient=False)  # one kernel instead of two; it takes more memory in training only


class EfficientNetLite(_BlockOutputs, efficientnet_lite_pytorch.EfficientNet):
    """EfficientNet-Lite 0 ... 2: no squeeze-and-excitation, ReLU6 instead of swish."""

    def __init__(self, name: str, outlayers: Sequence[int]) -> None:
        super().__init__(efficientnet_lite_pytorch.get_model_params(_package_name(name), None), name, outlayers)


def _package_name(name: str) -> str:
    return name.replace("_", "-")
