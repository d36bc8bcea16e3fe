"""Dinomaly decodes what a ViT's layers say from a noisy mean of them (Guo et al., CVPR 2025)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout
from models.reconstructions.uniad import as_float32, enlarge
from utils.errors import UserError


class Dinomaly(nn.Module):
    """Noisy bottleneck and a decoder with linear attention, compared with the encoder in groups of layers.

    D is the width of the encoder, L the number of its layers, G that of the groups, P that of its prefix tokens (class and
    registers), N = P + h*w.

    Args:
        inplanes, instrides: width and stride of each encoder layer: lists of L equal numbers.
        feature_size: (h, w) of the feature grid.
        num_decoder_layers: as many as the encoder's.
        groups: the encoder's layers, counted from 0, in groups: "loose reconstruction".
        dropout: rate in the bottleneck, which makes it noisy.

    Raises UserError for inconsistent sizes.
    """

    def __init__(
        self,
        inplanes: Sequence[int],
        instrides: Sequence[int],
        feature_size: Sequence[int],
        nhead: int = 12,
        num_decoder_layers: int = 8,
        groups: Sequence[Sequence[int]] = ((0, 1, 2, 3), (4, 5, 6, 7)),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_sizes(inplanes, instrides, nhead, num_decoder_layers, groups, dropout)
        dim, self.stride = inplanes[0], instrides[0]
        self.feature_size = tuple(feature_size)
        self.groups = [list(members) for members in groups]
        self.bottleneck = nn.Sequential(MLP(dim, dropout))
        self.decoder = nn.ModuleList(Block(dim, nhead) for _ in range(num_decoder_layers))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.03, b=0.03)
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: dict[str, Tensor | list[Tensor]]) -> dict[str, Tensor | list[Tensor]]:
        """Takes what `group` makes, `token_groups` BxGxNxD, from a cache; else `features`, and `prefix` if there is any, for it.

        Returns `encoded` and `decoded`, lists of BxDxhxw in float32, one for each group. In eval mode also the `distance`
        between them, Bx1xhxw, and the anomaly map `pred` Bx1xHxW, the distance at the image's size.
        """
        token_groups = inputs.get("token_groups")
        if token_groups is None:
            token_groups = self.group(inputs["features"], inputs.get("prefix"))
        encoder_groups = as_float32(token_groups).unbind(dim=1)  # B x N x D each

        x = as_float32(self.bottleneck(self.mean_of_layers(encoder_groups)))  # B x N x D; blocks add to it in float32
        layers = [x := block(x) for block in self.decoder][::-1]  # the deepest block stands for the first layer
        encoded = [self.grid(tokens) for tokens in encoder_groups]
        decoded = [mean([self.grid(layers[layer]) for layer in members]) for members in self.groups]

        outputs = {"encoded": encoded, "decoded": decoded}  # B x D x h x w each
        if not self.training:
            distances = [cosine_distance(*pair) for pair in zip(encoded, decoded, strict=True)]
            outputs["distance"] = distance = mean(distances)  # B x 1 x h x w
            outputs["pred"] = enlarge(distance, [n * self.stride for n in distance.shape[2:]])  # B x 1 x H x W
        return outputs

    def group(self, features: Sequence[Tensor], prefix: Sequence[Tensor] | None = None) -> Tensor:
        """The mean tokens of each group's layers, prefix first, in float32: BxGxNxD.

        features: BxDxhxw of each layer; prefix: BxPxD of each layer.
        """
        grids = [mean([features[layer] for layer in members]) for members in self.groups]  # B x D x h x w each
        tokens = torch.stack([grid.flatten(2).transpose(1, 2) for grid in grids], dim=1)  # B x G x hw x D
        if prefix is None:
            return tokens
        first = torch.stack([mean([prefix[layer] for layer in members]) for members in self.groups], dim=1)  # B x G x P x D
        return torch.cat([first, tokens], dim=2)

    def mean_of_layers(self, encoder_groups: Sequence[Tensor]) -> Tensor:
        """The mean of all layers, BxNxD, from the means of the groups, which may differ in size."""
        shares = [len(members) / len(self.decoder) for members in self.groups]
        return sum(share * tokens for share, tokens in zip(shares, encoder_groups, strict=True))

    def grid(self, tokens: Tensor) -> Tensor:
        """Tokens BxNxD without the prefix as a grid BxDxhxw."""
        h, w = self.feature_size
        return tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))


class Block(nn.Module):
    """A transformer block of width D with linear attention."""

    def __init__(self, dim: int, nhead: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-8)
        self.attn = LinearAttention(dim, nhead)
        self.norm2 = nn.LayerNorm(dim, eps=1e-8)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: B x N x D, as is what it returns."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LinearAttention(nn.Module):
    """Multi-head attention that cannot focus on single tokens ("unfocused linear attention")."""

    def __init__(self, dim: int, nhead: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: B x N x D, as is what it returns."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4).contiguous()  # B x heads x N x D/heads
        return self.proj(linear_attention(q, k, v).transpose(1, 2).flatten(2))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose weights are f(q)·f(k) over their sum, f = elu + 1, in time linear in N. All are B x heads x N x d."""
    q, k = elu_plus_1(q), elu_plus_1(k)
    total = q @ k.sum(dim=2).unsqueeze(3)  # B x heads x N x 1
    return q @ (k.transpose(2, 3) @ v) / total


def elu_plus_1(x: Tensor) -> Tensor:
    if x.device.type == "cpu":  # torch's elu is eight times slower there than its exp
        return EluPlus1.apply(x) if x.requires_grad else exp_or_plus_1(x)
    return F.elu(x) + 1


def exp_or_plus_1(x: Tensor) -> Tensor:
    return x.clamp_max(0).exp_().add_(x.relu())


class EluPlus1(torch.autograd.Function):
    """Its derivative, exp(x) below 0 and 1 above, is the result up to 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = exp_or_plus_1(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y.clamp_max(1).mul_(gradient)


class MLP(nn.Module):
    """Two linear layers, with dropout before, between and after them."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: B x N x D, as is what it returns."""
        x = self.dropout(F.gelu(self.fc1(self.dropout(x))))
        return self.dropout(self.fc2(x))


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean in float32 of tensors of one shape."""
    first, *rest = (as_float32(tensor) for tensor in tensors)
    return sum(rest, first) / len(tensors)


def cosine_distance(encoded: Tensor, decoded: Tensor) -> Tensor:
    """1 - cos over channels of grids BxDxhxw: Bx1xhxw."""
    return 1 - F.cosine_similarity(encoded, decoded, dim=1).unsqueeze(1)


def check_sizes(
    inplanes: Sequence[int],
    instrides: Sequence[int],
    nhead: int,
    num_decoder_layers: int,
    groups: Sequence[Sequence[int]],
    dropout: float,
) -> None:
    """Raises UserError for arguments of Dinomaly that do not go together."""
    layers = len(inplanes)
    if len(set(inplanes)) != 1 or len(set(instrides)) != 1:
        raise UserError(
            f"Dinomaly compares layers of one width and stride, not of widths {list(inplanes)} and strides {list(instrides)}: "
            "take a ViT's blocks"
        )
    if nhead < 1 or inplanes[0] % nhead:
        raise UserError(f"nhead {nhead} must divide the backbone's width {inplanes[0]}")
    if num_decoder_layers != layers:
        raise UserError(f"num_decoder_layers {num_decoder_layers} must be the number of the backbone's outlayers, {layers}")
    if not all(groups) or sorted(layer for members in groups for layer in members) != list(range(layers)):
        given = [list(members) for members in groups]
        raise UserError(f"groups {given} must hold each of the backbone's layers 0 to {layers - 1} once, and none be empty")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout {dropout} must be at least 0 and less than 1")
