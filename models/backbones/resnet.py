"""ResNets as backbones: torchvision's networks with the outputs of chosen layers."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from models.backbones.folded import in_device_layout
from models.backbones.specs import layer_outputs

# block type, blocks in each layer, channels per group in the 3x3 convolutions of layer 1
_ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], list[int], int]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], 64),
    "resnet34": (BasicBlock, [3, 4, 6, 3], 64),
    "resnet50": (Bottleneck, [3, 4, 6, 3], 64),
    "resnet101": (Bottleneck, [3, 4, 23, 3], 64),
    "wide_resnet50_2": (Bottleneck, [3, 4, 6, 3], 128),
}


class ResNet(TorchvisionResNet):
    """ResNet 18 ... 101 and Wide ResNet 50-2.

    Parameters keep torchvision's names, classifier included. The classifier and layers after the last outlayer never run.
    """

    def __init__(self, name: str, outlayers: Sequence[int]) -> None:
        outplanes, outstrides = layer_outputs(name, outlayers)
        block, blocks, width = _ARCHITECTURES[name]
        super().__init__(block, blocks, width_per_group=width)
        self.outplanes, self.outstrides = outplanes, outstrides
        self.outlayers = list(outlayers)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """{"image": Bx3xHxW} -> {"features": [BxCxhxw for each outlayer]}."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(in_device_layout(inputs["image"])))))
        layers = [self.layer1, self.layer2, self.layer3, self.layer4]
        outputs = {}
        for number, layer in enumerate(layers[: max(self.outlayers)], start=1):
            x = layer(x)
            outputs[number] = x
        return {"features": [outputs[number] for number in self.outlayers]}
