"""A head that finds pseudo-anomalies in the backbone's features, and adds what it finds to UniAD's distance (ours)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.necks import MFCN, Standardise
from models.reconstructions.uniad import enlarge


class Discriminator(nn.Module):
    """A few convolutions on a grid finer than UniAD's, which answer at each place: is this pasted in?

    Reconstruction sees what is unlike anything normal as a whole; small breaks of structure, which deep features hardly show,
    are what this head learns. Both are summed up, in units of a feature's normal deviation, so UniAD's features must be
    standardised too (MFCN's `standardise`).

    Args:
        inplanes, instrides: channels and stride of each map in `features`.
        outstride: stride of this head's grid.
        hidden_dim: its channels.
        weight: what a certain defect adds to the distance, in deviations.
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
        """In training takes `features` and `pseudo_features`, lists of BxCxhxw; gives `defect_logits`, 2Bx1xh'xw', normal first.

        In eval mode takes `features`, and UniAD's `feature_align`, `distance` and `pred`; the last two it gives anew, with what
        it found in them, on its own grid: Bx1xh'xw' and Bx1xHxW.
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
    """Each place by itself."""
    return nn.Conv2d(inplanes, outplanes, 1, bias=False), nn.BatchNorm2d(outplanes), nn.ReLU(inplace=True)
