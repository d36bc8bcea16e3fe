"""MFCN: multi-scale features on one grid (You et al., NeurIPS 2022, section 4.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.necks.standardise import Standardise


class MFCN(nn.Module):
    """Resize every feature map to the stride `outstrides[0]` and concatenate them on channels.

    Args:
        inplanes, instrides: channels and stride of each map in `features`.
        outplanes: one number, the sum of `inplanes`.
        outstrides: one number, the stride of the common grid.
        standardise: scale each channel to mean 0 and deviation 1 over the training features (ours).

    Raises ValueError if these are inconsistent.
    """

    def __init__(
        self,
        inplanes: Sequence[int],
        outplanes: Sequence[int],
        instrides: Sequence[int],
        outstrides: Sequence[int],
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if len(inplanes) != len(instrides):
            raise ValueError(f"MFCN: {len(inplanes)} inplanes but {len(instrides)} instrides")
        if list(outplanes) != [sum(inplanes)]:
            raise ValueError(f"MFCN: outplanes {list(outplanes)} must be the sum of inplanes, {[sum(inplanes)]}")
        if len(outstrides) != 1:
            raise ValueError(f"MFCN: outstrides {list(outstrides)} must be one number in a list")
        self.outplanes = list(outplanes)
        self.outstrides = list(outstrides)
        self.standardise = Standardise(sum(inplanes)) if standardise else nn.Identity()
        self.scales = [instride / outstrides[0] for instride in instrides]

    def forward(self, inputs: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """{"features": [BxCxhxw for each layer]} -> {"feature_align": Bx(sum of C)xHxW}."""
        resized = [_resize(*pair) for pair in zip(inputs["features"], self.scales, strict=True)]
        return {"feature_align": self.standardise(torch.cat(resized, dim=1))}

    def in_backbone_units(self, feature_rec: Tensor) -> Tensor:
        """The reconstruction BxCxhxw of `feature_align`, in the units before standardising."""
        return self.standardise.undo(feature_rec) if isinstance(self.standardise, Standardise) else feature_rec


def _resize(feature: Tensor, scale: float) -> Tensor:
    """Bilinear with aligned corners and no antialias: the published numbers depend on it."""
    if scale == 1:
        return feature
    return F.interpolate(feature, scale_factor=scale, mode="bilinear", align_corners=True)
