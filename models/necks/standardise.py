"""Features in units of their standard deviation."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Subtract each channel's mean and divide by its deviation, both over all features seen in training so far.

    Statistics of a single batch would depend on the classes in it; running statistics settle within tens of steps. They do not
    change in eval mode. A constant channel becomes 0. With several processes, training broadcasts the first process's statistics
    before each step. They are buffers of the state_dict: a run that starts from a checkpoint (saver.init_from) continues them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))

    def forward(self, features: Tensor, seen: int | None = None) -> Tensor:
        """BxCxhxw -> BxCxhxw float32. In training the first `seen` images, by default all, are added to the statistics."""
        features = features.float()
        if self.training:
            self._gather(features[:seen].detach())
        deviation = self.deviation
        scale = (1 / deviation).masked_fill(~(deviation > 0), 0)
        return (features - self.mean[:, None, None]) * scale[:, None, None]

    def undo(self, features: Tensor) -> Tensor:
        """BxCxhxw in deviations -> BxCxhxw in the original units."""
        return features * self.deviation[:, None, None] + self.mean[:, None, None]

    @property
    def deviation(self) -> Tensor:
        """Population deviation, C. Exactly 0 for a channel that is constant up to float32's rounding."""
        deviation = self.variance.sqrt()
        return deviation.masked_fill(deviation <= 1e-6 * self.mean.abs(), 0)

    def _gather(self, features: Tensor) -> None:
        """Merge the batch's mean and variance into the running ones (Chan, Golub & LeVeque 1979)."""
        variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)  # C, C
        number = features.numel() // features.shape[1]
        self.count += number
        share = (number / self.count).float()
        step = mean - self.mean
        self.mean += step * share
        self.variance += (variance - self.variance) * share + step.square() * share * (1 - share)
