"""Dinomaly in torch's own modules, as the paper's text has it: what the fast one is compared with, and timed against."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
