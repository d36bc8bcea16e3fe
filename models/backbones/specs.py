"""Channels and strides of each backbone's layers and, for EfficientNets, each layer's last block."""

from collections.abc import Sequence
from typing import NamedTuple

from utils.errors import UserError


class BackboneSpec(NamedTuple):
    """Of each layer (counted from 1); `blocks` is None for ResNets, whose layers are modules."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    blocks: tuple[int, ...] | None = None  # the layer's last block (counted from 0)


EFFICIENTNET_STRIDES, RESNET_STRIDES = (2, 4, 8, 16, 32), (4, 8, 16, 32)
SPECS: dict[str, BackboneSpec] = {
    "efficientnet_b0": BackboneSpec((16, 24, 40, 112, 320), EFFICIENTNET_STRIDES, (0, 2, 4, 10, 15)),
    "efficientnet_b1": BackboneSpec((16, 24, 40, 112, 320), EFFICIENTNET_STRIDES, (1, 4, 7, 15, 22)),
    "efficientnet_b2": BackboneSpec((16, 24, 48, 120, 352), EFFICIENTNET_STRIDES, (1, 4, 7, 15, 22)),
    "efficientnet_b3": BackboneSpec((24, 32, 48, 136, 384), EFFICIENTNET_STRIDES, (1, 4, 7, 17, 25)),
    "efficientnet_b4": BackboneSpec((24, 32, 56, 160, 448), EFFICIENTNET_STRIDES, (1, 5, 9, 21, 31)),
    "efficientnet_b5": BackboneSpec((24, 40, 64, 176, 512), EFFICIENTNET_STRIDES, (2, 7, 12, 26, 38)),
    "efficientnet_b6": BackboneSpec((32, 40, 72, 200, 576), EFFICIENTNET_STRIDES, (2, 8, 14, 30, 44)),
    "efficientnet_b7": BackboneSpec((32, 48, 80, 224, 640), EFFICIENTNET_STRIDES, (3, 10, 17, 37, 54)),
    "efficientnet_lite0": BackboneSpec((16, 24, 40, 112, 320), EFFICIENTNET_STRIDES, (0, 2, 4, 10, 15)),
    "efficientnet_lite1": BackboneSpec((16, 24, 40, 112, 320), EFFICIENTNET_STRIDES, (0, 3, 6, 14, 20)),
    "efficientnet_lite2": BackboneSpec((16, 24, 48, 120, 352), EFFICIENTNET_STRIDES, (0, 3, 6, 14, 20)),
    "resnet18": BackboneSpec((64, 128, 256, 512), RESNET_STRIDES),
    "resnet34": BackboneSpec((64, 128, 256, 512), RESNET_STRIDES),
    "resnet50": BackboneSpec((256, 512, 1024, 2048), RESNET_STRIDES),
    "resnet101": BackboneSpec((256, 512, 1024, 2048), RESNET_STRIDES),
    "wide_resnet50_2": BackboneSpec((256, 512, 1024, 2048), RESNET_STRIDES),
}


def layer_outputs(name: str, outlayers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Channels and strides of the backbone `name` at `outlayers`, in that order. UserError for no layer, or one that it lacks."""
    spec = SPECS[name]
    layers = list(range(1, len(spec.strides) + 1))
    if not outlayers:
        raise UserError(f"outlayers of {name} is empty: name at least one of its layers {layers}")
    for layer in outlayers:
        if layer not in layers:
            raise UserError(f"{name} has no layer {layer!r} (outlayers {list(outlayers)}): its layers are {layers}")
    return [spec.channels[layer - 1] for layer in outlayers], [spec.strides[layer - 1] for layer in outlayers]
