"""ResNets as backbones: torchvision's networks with the outputs of chosen layers."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import get_model

from models.backbones.folded import in_device_layout
from models.backbones.specs import layer_outputs


class ResNet(nn.Module):
    """ResNet 18 ... 101 and Wide ResNet 50-2, with torchvision's parameter names. What follows the last outlayer never runs."""

    def __init__(self, name: str, outlayers: Sequence[int]) -> None:
        super().__init__()
        self.outplanes, self.outstrides = layer_outputs(name, outlayers)
        self.outlayers = list(outlayers)
        for child_name, module in get_model(name).named_children():
            self.add_module(child_name, module)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """{"image": Bx3xHxW} -> {"features": [BxCxhxw for each outlayer]}."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(in_device_layout(inputs["image"])))))
        outputs = [x := layer(x) for layer in [self.layer1, self.layer2, self.layer3, self.layer4][: max(self.outlayers)]]
        return {"features": [outputs[layer - 1] for layer in self.outlayers]}
