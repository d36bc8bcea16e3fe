"""Training losses. Each takes the network's output dict and returns a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureMSELoss(nn.Module):
    """Mean squared error between reconstructed and clean features (section 3.1), times `weight`."""

    subnets = ("models.reconstructions.UniAD", "models.reconstructions.Memory")

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        """Reads `feature_rec` and `feature_align`, both BxCxhxw."""
        return self.weight * F.mse_loss(outputs["feature_rec"], outputs["feature_align"])


class ImageMSELoss(nn.Module):
    """Mean squared error between the reconstructed and the normalised input image, times `weight`."""

    subnets = ("models.reconstructions.VisDecoder",)

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        """Reads `image_rec` and `image`, both Bx3xHxW."""
        return self.weight * F.mse_loss(outputs["image_rec"], outputs["image"])


class PseudoAnomalyLoss(nn.Module):
    """Binary cross-entropy of the discriminator's logits, mean over positions, times `weight`; 0 in evaluation.

    A position is defective if more than LEAST_SHARE of its pixels are. One with fewer defective pixels, but some, is ignored.
    Defective positions are rare, so each has the weight DEFECTIVE.
    """

    subnets = ("models.discriminators.Discriminator",)
    DEFECTIVE = 3.0
    LEAST_SHARE = 0.1

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        """Reads `defect_logits`, 2Bx1xhxw, normal images before pseudo-anomalies, and the latter's `pseudo_mask`, Bx1xHxW."""
        if "defect_logits" not in outputs:
            return outputs["feature_align"].new_zeros(())
        logits = outputs["defect_logits"].float()
        share = F.adaptive_avg_pool2d(outputs["pseudo_mask"], logits.shape[2:])  # B x 1 x h x w
        share = torch.cat([torch.zeros_like(share), share])
        defective = (share > self.LEAST_SHARE).float()
        weights = torch.where(defective > 0, self.DEFECTIVE, (share == 0).float())
        return self.weight * F.binary_cross_entropy_with_logits(logits, defective, weights)


LOSSES = {"FeatureMSELoss": FeatureMSELoss, "ImageMSELoss": ImageMSELoss, "PseudoAnomalyLoss": PseudoAnomalyLoss}


class Criterion(nn.Module):
    """The sum of a configuration's losses."""

    def __init__(self, criterion: list[dict]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(LOSSES[item["type"]](**item["kwargs"]) for item in criterion)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return sum(loss(outputs) for loss in self.losses)
