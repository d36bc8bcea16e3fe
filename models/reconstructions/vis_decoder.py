"""VisDecoder reconstructs the image from a feature grid, to show what UniAD reconstructs."""

from torch import Tensor, nn

from models.initializer import initialize
from models.reconstructions.uniad import as_number
from utils.errors import UserError


class VisDecoder(nn.Module):
    """A reversed ResNet-34 (`basic`) or ResNet-50 (`bottle`): from the feature grid to the image.

    Args:
        block_type: "basic" or "bottle".
        inplanes, instrides: channels and stride (16 or 32) of `feature_align`; a number, or a list of one.
        initializer: {"method": ...}, see models.initializer; normal(0.01) without one.
        width: planes of the last stage, 128 as published; the others have 1, 2 and 4 times as many.

    Raises UserError for an unknown block type and for another stride.
    """

    def __init__(
        self,
        block_type: str,
        inplanes: int | list[int],
        instrides: int | list[int],
        initializer: dict | None = None,
        width: int = 128,
    ) -> None:
        super().__init__()
        if block_type not in BLOCKS:
            raise UserError(f"VisDecoder's block_type {block_type!r} is unknown: choose one of {', '.join(BLOCKS)}")
        block = BLOCKS[block_type]
        stride = as_number(instrides)
        if stride not in (16, 32):
            raise UserError(f"VisDecoder needs features of stride 16 or 32, not {stride}: set outstrides of the neck")

        channels = [planes * block.expansion for planes in (4 * width, 2 * width, width)]
        self.layer4 = _stage(block, as_number(inplanes), channels[0], blocks=3, scale=1)
        self.layer3 = _stage(block, channels[0], channels[1], blocks=6, scale=2)
        self.layer2 = _stage(block, channels[1], channels[2], blocks=4, scale=2)
        self.layer1 = _stage(block, channels[2], channels[2], blocks=3, scale=stride // 16)
        self.upsample = _upsample(2)
        self.conv1 = nn.Conv2d(channels[2], channels[2], kernel_size=7, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels[2], 3, kernel_size=1, bias=False)
        initialize(self, **(initializer or {}))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"feature_align": BxCxhxw} -> {"image_rec": Bx3xHxW}, as the normalised image; H = stride * h, W = stride * w."""
        x = self.layer4(inputs["feature_align"])  # B x 512 x h x w; four times the channels in the bottle form, here and below
        x = self.layer3(x)  # B x 256 x 2h x 2w
        x = self.layer2(x)  # B x 128 x 4h x 4w
        x = self.layer1(x)  # B x 128 x H/4 x W/4
        x = self.relu(self.bn1(self.conv1(self.upsample(x))))  # B x 128 x H/2 x W/2
        return {"image_rec": self.conv2(self.upsample(x))}  # B x 3 x H x W


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the second after upsampling, and a shortcut."""

    expansion = 1  # a stage's channels, relative to BasicBlock

    def __init__(self, inplanes: int, outplanes: int, scale: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, outplanes, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outplanes)
        self.upsample = _upsample(scale)
        self.conv2 = nn.Conv2d(outplanes, outplanes, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outplanes)
        self.shortcut = _shortcut(inplanes, outplanes, scale)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Bx inplanes xhxw -> Bx outplanes x(scale h)x(scale w)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(self.upsample(out)))
        return self.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 convolution to a quarter of the channels, 3x3 after upsampling, 1x1 to all channels, and a shortcut."""

    expansion = 4

    def __init__(self, inplanes: int, outplanes: int, scale: int) -> None:
        super().__init__()
        width = outplanes // self.expansion
        self.conv1 = nn.Conv2d(inplanes, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.upsample = _upsample(scale)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outplanes, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.shortcut = _shortcut(inplanes, outplanes, scale)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Bx inplanes xhxw -> Bx outplanes x(scale h)x(scale w)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(self.upsample(out))))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


BLOCKS: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottle": Bottleneck}


def _stage(block: type[BasicBlock | Bottleneck], inplanes: int, outplanes: int, blocks: int, scale: int) -> nn.Sequential:
    """The first block changes channels and size."""
    return nn.Sequential(block(inplanes, outplanes, scale), *(block(outplanes, outplanes, 1) for _ in range(blocks - 1)))


def _shortcut(inplanes: int, outplanes: int, scale: int) -> nn.Module:
    if inplanes == outplanes and scale == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inplanes, outplanes, kernel_size=1, bias=False), _upsample(scale), nn.BatchNorm2d(outplanes))


def _upsample(scale: int) -> nn.Module:
    return nn.Identity() if scale == 1 else nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
