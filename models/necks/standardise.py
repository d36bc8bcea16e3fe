"""Features in units of their own spread."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Each channel less its mean, divided by its deviation, both over every feature seen in training so far.

    Statistics of a single batch would depend on which classes happen to be in it; those gathered here settle within tens of
    steps. In eval mode they stand still. A channel that never changes becomes 0. Of several processes the first one's images
    decide, which training shares out before each step. They are part of the weights: a new run from a checkpoint
    (saver.init_from) goes on gathering from them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))

    def forward(self, features: Tensor, seen: int | None = None) -> Tensor:
        """BxCxhxw -> BxCxhxw float32; in training the first `seen` of the batch, by default all, are added to the statistics."""
        features = features.float()
        if self.training:
            self._gather(features[:seen].detach())
        scale = torch.where(self.deviation > 0, 1 / self.deviation, 0.0)
        return (features - self.mean[:, None, None]) * scale[:, None, None]

    def undo(self, features: Tensor) -> Tensor:
        """BxCxhxw in deviations -> in the units that they came in."""
        return features * self.deviation[:, None, None] + self.mean[:, None, None]

    @property
    def deviation(self) -> Tensor:
        """C, of the population; exactly 0 for a channel that is constant but for float32's rounding."""
        deviation = self.variance.sqrt()
        return deviation.masked_fill(deviation <= 1e-6 * self.mean.abs(), 0)

    def _gather(self, features: Tensor) -> None:
        """Join the batch's mean and variance with those so far (Chan, Golub & LeVeque 1979)."""
        variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)  # C, C
        number = features.numel() // features.shape[1]
        self.count += number
        share = (number / self.count).float()
        step = mean - self.mean
        self.mean += step * share
        self.variance += (variance - self.variance) * share + step.square() * share * (1 - share)
