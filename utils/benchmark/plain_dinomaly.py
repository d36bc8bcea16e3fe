"""Dinomaly in torch's own modules, as the paper's text has it: what the fast one is compared with, and timed against.

Nothing is computed beforehand: a training step starts from images, and groups are means of all layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import BACKBONES
from models.reconstructions.uniad import enlarge


class PlainDinomalyNetwork(nn.Module):
    """Image to map, for a `net` as load_config returns it. The backbone stays in eval mode and takes no gradients."""

    def __init__(self, net: Sequence[dict]) -> None:
        super().__init__()
        subnet, reconstruction = net
        self.backbone = BACKBONES[subnet["type"].rsplit(".")[-1]](**subnet["kwargs"]).requires_grad_(False)
        kwargs = reconstruction["kwargs"]
        numbers = [kwargs[name] for name in ("nhead", "num_decoder_layers", "groups", "dropout")]
        self.reconstruction = PlainDinomaly(kwargs["inplanes"][0], *numbers, *kwargs["feature_size"])
        self.stride = kwargs["instrides"][0]

    def train(self, mode: bool = True) -> "PlainDinomalyNetwork":
        super().train(mode)
        self.backbone.eval()
        return self

    def extract(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """{"image": B x 3 x H x W} -> the tokens of every layer, B x N x D, prefix first."""
        outputs = self.backbone(inputs)
        grids = [grid.flatten(2).transpose(1, 2) for grid in outputs["features"]]
        return [torch.cat(pair, dim=1) for pair in zip(outputs["prefix"], grids, strict=True)] if "prefix" in outputs else grids

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """{"image": B x 3 x H x W} -> encoded and decoded, in eval mode also pred."""
        encoded, decoded = self.reconstruction(self.extract(inputs))
        outputs = {"encoded": encoded, "decoded": decoded}
        if not self.training:
            pairs = zip(encoded, decoded, strict=True)
            maps = [1 - F.cosine_similarity(*pair, dim=1).unsqueeze(1) for pair in pairs]  # B x 1 x h x w each
            maps = [enlarge(x, [side * self.stride for side in x.shape[2:]]) for x in maps]
            outputs["pred"] = torch.stack(maps).mean(dim=0)  # B x 1 x H x W
        return outputs


class PlainDinomaly(nn.Module):
    """Takes the tokens of every encoder layer, BxNxD; returns encoder and decoder groups, lists of BxDxhxw.

    Its state_dict has the keys of models.reconstructions.Dinomaly.
    """

    def __init__(self, dim: int, nhead: int, depth: int, groups: list[list[int]], dropout: float, h: int, w: int) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(PlainMLP(dim, dropout))
        self.decoder = nn.ModuleList(PlainBlock(dim, nhead) for _ in range(depth))
        self.groups, self.h, self.w = groups, h, w

    def forward(self, layers: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        x = self.bottleneck(torch.stack(layers, dim=1).mean(dim=1))
        decoded = []
        for block in self.decoder:
            x = block(x)
            decoded.append(x)
        return self.grouped(layers), self.grouped(decoded[::-1])

    def grouped(self, layers: list[Tensor]) -> list[Tensor]:
        means = [torch.stack([layers[i] for i in members], dim=1).mean(dim=1) for members in self.groups]
        grids = [tokens[:, tokens.shape[1] - self.h * self.w :].permute(0, 2, 1) for tokens in means]
        return [grid.reshape(grid.shape[0], grid.shape[1], self.h, self.w).contiguous() for grid in grids]


class PlainBlock(nn.Module):
    def __init__(self, dim: int, nhead: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-8), PlainAttention(dim, nhead)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-8), PlainMLP(dim, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainAttention(nn.Module):
    def __init__(self, dim: int, nhead: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.nhead, d // self.nhead).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        z = 1 / torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=-2))
        out = torch.einsum("bhnd,bhde,bhn->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v), z)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class PlainMLP(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(self.drop(x))))))


def plain_criterion(outputs: dict[str, list[Tensor]]) -> Tensor:
    """The loss of a training's first step, in which no position counts as easy."""
    return plain_loss(outputs["encoded"], outputs["decoded"], easy_share=0.0, factor=0.1)


def plain_loss(encoded: list[Tensor], decoded: list[Tensor], easy_share: float, factor: float) -> Tensor:
    """The mean of the groups' 1 - cos over whole images; the easiest positions pass on `factor` of the decoder's gradient."""
    total = 0.0
    for a, b in zip(encoded, decoded, strict=True):
        a = a.detach()
        distance = 1 - F.cosine_similarity(a, b.detach(), dim=1).unsqueeze(1)  # B x 1 x h x w
        hardest = torch.sort(distance.flatten(), descending=True).values[: int(distance.numel() * (1 - easy_share))]
        if b.requires_grad:
            b.register_hook(lambda grad, easy=distance < hardest[-1]: torch.where(easy, grad * factor, grad))
        total = total + (1 - F.cosine_similarity(a.flatten(1), b.flatten(1))).mean()
    return total / len(encoded)
