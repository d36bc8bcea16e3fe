"""A head that detects pseudo-anomalies in the backbone's features and adds its score to UniAD's distance (ours)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.necks import MFCN, Standardise
from models.reconstructions.uniad import enlarge


class Discriminator(nn.Module):
    """A few convolutions on a finer grid than UniAD's, which classify each position as normal or pasted in.

    The reconstruction detects what differs from normal images as a whole. This head learns small structural defects, which deep
    features hardly show. Both scores are added in units of a feature's normal deviation, so UniAD's features must be
    standardised too (MFCN's `standardise`).

    Args:
        inplanes, instrides: channels and stride of each map in `features`.
        outstride: stride of this head's grid.
        hidden_dim: channels of this head.
        weight: what a defect of probability 1 adds to the distance, in deviations.
    """

    def __init__(
        self, inplanes: Sequence[int], instrides: Sequence[int], outstride: int, hidden_dim: int = 128, weight: float = 3.0
    ) -> None:
        super().__init__()
        channels = sum(inplanes)
        self.weight = weight
        self.align = MFCN(inplanes, [channels], instrides, [outstride])
        self.standardise = Standardise(channels)
        self.head = nn.Sequential(
            *conv_norm_relu(channels, hidden_dim),
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim),
            *conv_norm_relu(hidden_dim, hidden_dim),
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim),
            *conv_norm_relu(hidden_dim, hidden_dim // 2),
            nn.Conv2d(hidden_dim // 2, 1, 1),
        )

    def forward(self, inputs: dict[str, Tensor | list[Tensor]]) -> dict[str, Tensor]:
        """Training: from `features` and `pseudo_features`, lists of BxCxhxw, to `defect_logits`, 2Bx1xh'xw', normal first.

        Eval mode: reads `features` and UniAD's `feature_align`, `distance` and `pred`. Returns new `distance`, Bx1xh'xw' on this
        head's grid, and `pred`, Bx1xHxW, with the defect scores added.
        """
        if self.training:
            pairs = zip(inputs["features"], inputs["pseudo_features"], strict=True)
            features = self.align({"features": [torch.cat(pair) for pair in pairs]})["feature_align"]  # 2B x C x h' x w'
            return {"defect_logits": self.head(self.standardise(features, seen=len(features) // 2))}
        features = self.align(inputs)["feature_align"]  # B x C x h' x w'
        defect = self.head(self.standardise(features)).float().sigmoid()  # B x 1 x h' x w'
        reconstruction = inputs["distance"] / math.sqrt(inputs["feature_align"].shape[1])  # B x 1 x h x w, root mean square
        distance = enlarge(reconstruction, defect.shape[2:]) + self.weight * defect
        return {"distance": distance, "pred": enlarge(distance, inputs["pred"].shape[2:])}


def conv_norm_relu(inplanes: int, outplanes: int) -> tuple[nn.Module, ...]:
    """A 1x1 convolution, batch norm and ReLU."""
    return nn.Conv2d(inplanes, outplanes, 1, bias=False), nn.BatchNorm2d(outplanes), nn.ReLU(inplace=True)
