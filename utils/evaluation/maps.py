"""How an anomaly map is finished: the same in evaluation, in prediction and in an exported file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 5  # side of the Gaussian's window, in pixels


@dataclass(frozen=True)
class MapForm:
    """Resize the network's map to `size` and smooth it with a Gaussian; None: leave it as it is."""

    size: tuple[int, int] | None = None
    sigma: float | None = None

    @classmethod
    def of(cls, evaluator: Mapping[str, Any] | None) -> "MapForm":
        """From a configuration's section evaluator."""
        form = (evaluator or {}).get("map") or {}
        return cls(tuple(form["size"]) if form.get("size") else None, form.get("sigma"))

    def __call__(self, pred: Tensor) -> Tensor:
        """Bx1xHxW -> Bx1xH'xW'."""
        if self.size:
            pred = F.interpolate(pred, self.size, mode="bilinear", align_corners=False)
        return smooth(pred, self.sigma) if self.sigma else pred

    def mask(self, mask: Tensor) -> Tensor:
        """Bx1xHxW of {0, 1} at the map's size."""
        return F.interpolate(mask, self.size, mode="nearest") if self.size else mask

    def inside(self, inside: np.ndarray) -> np.ndarray:
        """A region of interest, HxW bool, at the map's size."""
        return self.mask(torch.from_numpy(inside)[None, None].float())[0, 0].numpy() > 0


PLAIN = MapForm()  # the network's map as it is


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Bx1xHxW, each pixel the Gaussian mean of its window, with zeros around the map."""
    offsets = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = weights[:, None] * weights[None, :]
    return F.conv2d(maps, (kernel / kernel.sum())[None, None], padding=WINDOW // 2)
