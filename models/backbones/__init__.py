"""Backbones turn an image into feature maps. BACKBONES maps each name a configuration may use to its builder."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from models.backbones.efficientnet import EfficientNet
from models.backbones.pretrained import load_pretrained
from models.backbones.resnet import ResNet
from models.backbones.specs import SPECS
from models.backbones.timm_models import build_timm


def build_backbone(name: str, pretrained: bool, outlayers: Sequence[int], pretrained_model: str = "") -> nn.Module:
    """The backbone `name` of SPECS, whose `outplanes` and `outstrides` are the channels and strides of its `outlayers`.

    pretrained: load ImageNet weights, from the file `pretrained_model` if given. UserError for layers or weights that it lacks.
    """
    backbone = (EfficientNet if name.startswith("efficientnet") else ResNet)(name, outlayers)
    if pretrained:
        load_pretrained(backbone, name, pretrained_model)
    return backbone


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(build_backbone, name) for name in SPECS},
    "timm": build_timm,  # also takes timm's name of the model
}

__all__ = ["BACKBONES"]
