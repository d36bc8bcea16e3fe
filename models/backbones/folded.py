"""Inference-only EfficientNet with batch norms folded into convolutions, which also do the padding.

It has no parameters of its own. Folded weights are made when needed, and again after the modules' weights have changed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FoldedConv:
    """The package's static padding, a convolution and the batch norm after it (in eval mode) as one convolution."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self.conv, self.norm = conv, norm
        self.made_from: list[object] = []
        # "Same" padding adds at most one row and column more below and right than above and left: (0, 1) or (1, 2) at stride 2.
        self.before, self.after = getattr(conv.static_padding, "padding", (0, 0))[:2]

    def __call__(self, x: Tensor) -> Tensor:
        sources = (self.conv.weight, self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var)
        made_from = [x.dtype, *((source.data_ptr(), source._version) for source in sources)]
        if made_from != self.made_from:
            self.weight, self.bias = self.fold(x.dtype)
            self.made_from = made_from
        return F.conv2d(x, self.weight, self.bias, self.conv.stride, self.after, groups=self.conv.groups)

    def fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = self.conv.weight * scale[:, None, None, None]
        extra = self.after - self.before  # zeros above and left in the kernel: all sides get the same padding, without a copy
        return F.pad(weight, (extra, 0, extra, 0)).to(dtype), (norm.bias - norm.running_mean * scale).to(dtype)


class FoldedBlock:
    """An MBConv block of either EfficientNet package, in eval mode."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.expand = FoldedConv(block._expand_conv, block._bn0) if hasattr(block, "_expand_conv") else None
        self.depthwise = FoldedConv(block._depthwise_conv, block._bn1)
        self.project = FoldedConv(block._project_conv, block._bn2)
        args = block._block_args
        self.residual = block.id_skip and args.stride in (1, [1]) and args.input_filters == args.output_filters

    def __call__(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else activate(self.block, self.expand(x))
        y = activate(self.block, self.depthwise(y))
        if self.block.has_se:  # squeeze and excitation: a factor in 0..1 for each channel, B x C x 1 x 1
            squeezed = self.block._se_reduce(y.mean(dim=(2, 3), keepdim=True))
            y.mul_(self.block._se_expand(F.silu(squeezed)).sigmoid())
        y = self.project(y)
        return y.add_(x) if self.residual else y


def in_device_layout(image: Tensor) -> Tensor:
    """On CPU, whose convolutions are fastest with it, the image in channels_last layout; elsewhere the image itself."""
    return image.contiguous(memory_format=torch.channels_last) if image.device.type == "cpu" else image


def activate(module: nn.Module, x: Tensor) -> Tensor:
    """The activation of `module` (swish, or ReLU6 in EfficientNet-Lite) in place."""
    return F.relu6(x, inplace=True) if isinstance(module._swish, nn.ReLU6) else F.silu(x, inplace=True)
