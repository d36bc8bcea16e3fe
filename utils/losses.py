"""Training losses: each a module that takes the network's output dict and returns a number."""

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureMSELoss(nn.Module):
    """Mean squared error between reconstructed and clean features (section 3.1), times `weight`."""

    reconstruction = "models.reconstructions.UniAD"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        """Reads `feature_rec` and `feature_align`, both BxCxhxw."""
        return self.weight * F.mse_loss(outputs["feature_rec"], outputs["feature_align"])


class ImageMSELoss(nn.Module):
    """Mean squared error between the drawn and the normalised input image, times `weight`."""

    reconstruction = "models.reconstructions.VisDecoder"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        """Reads `image_rec` and `image`, both Bx3xHxW."""
        return self.weight * F.mse_loss(outputs["image_rec"], outputs["image"])


LOSSES = {"FeatureMSELoss": FeatureMSELoss, "ImageMSELoss": ImageMSELoss}


class Criterion(nn.Module):
    """The sum of a configuration's losses."""

    def __init__(self, criterion: list[dict]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(LOSSES[item["type"]](**item["kwargs"]) for item in criterion)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return sum(loss(outputs) for loss in self.losses)
