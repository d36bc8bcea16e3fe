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
        weights = (share == 0).float().masked_fill(defective > 0, self.DEFECTIVE)
        return self.weight * F.binary_cross_entropy_with_logits(logits, defective, weights)


class GroupCosineLoss(nn.Module):
    """1 - cos between encoder and decoder, each grid as one vector an image; mean over images and groups, times `weight`.

    Hard mining ("loose loss"): the easiest positions of a batch pass on only `factor` of the decoder's gradient. Their share
    grows from 0 to `share` over the first `warmup` steps. It changes gradients only, not the loss.
    """

    subnets = ("models.reconstructions.Dinomaly",)
    EPS = 1e-16  # of a product of squared norms

    def __init__(self, weight: float = 1.0, share: float = 0.9, factor: float = 0.1, warmup: int = 1000) -> None:
        super().__init__()
        self.weight = weight
        self.share, self.factor, self.warmup = share, factor, warmup

    def forward(self, outputs: dict[str, list[Tensor] | Tensor | int]) -> Tensor:
        """Reads `encoded` and `decoded`, lists of BxDxhxw, and `step`, the number of steps done before, 0 if it is not there."""
        # A tensor, as all that follows from it: a step may be recorded once and repeated with other numbers.
        step = outputs["decoded"][0].new_zeros((), dtype=torch.float64) + outputs.get("step", 0)
        share = (self.share * step / self.warmup).masked_fill(step >= self.warmup, self.share)
        pairs = zip(outputs["encoded"], outputs["decoded"], strict=True)
        losses = [self.group_loss(encoded.detach(), decoded, share) for encoded, decoded in pairs]
        return self.weight * torch.stack(losses).mean()

    def group_loss(self, encoded: Tensor, decoded: Tensor, share: Tensor) -> Tensor:
        """encoded, decoded: BxDxhxw; share: of the positions, those that are easy, a float64 scalar."""
        # each position enters the loss by these two numbers only, so its gradient is scaled where they pass theirs on
        product = (encoded * decoded).sum(dim=1)  # B x h x w
        square = decoded.square().sum(dim=1)  # B x h x w
        target_square = encoded.square().sum(dim=1)  # B x h x w
        if product.requires_grad:
            distance = 1 - self.cosine(product.detach(), square.detach(), target_square)
            hardest = (distance.numel() * (1 - share)).long().clamp_min(1)
            is_easy = distance < distance.flatten().sort(descending=True).values.gather(0, hardest[None] - 1)
            scale = torch.ones_like(distance).masked_fill(is_easy, self.factor)
            product.register_hook(lambda gradient: gradient * scale)
            square.register_hook(lambda gradient: gradient * scale)
        product, square, target_square = (x.sum(dim=(1, 2)) for x in (product, square, target_square))  # B each
        return (1 - self.cosine(product, square, target_square)).mean()

    def cosine(self, product: Tensor, square: Tensor, target_square: Tensor) -> Tensor:
        return product / (square * target_square).clamp_min(self.EPS).sqrt()


LOSSES = {
    "FeatureMSELoss": FeatureMSELoss,
    "ImageMSELoss": ImageMSELoss,
    "PseudoAnomalyLoss": PseudoAnomalyLoss,
    "GroupCosineLoss": GroupCosineLoss,
}


class Criterion(nn.Module):
    """The sum of a configuration's losses."""

    def __init__(self, criterion: list[dict]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(LOSSES[item["type"]](**item["kwargs"]) for item in criterion)

    def forward(self, outputs: dict[str, Tensor]) -> Tensor:
        return sum(loss(outputs) for loss in self.losses)
