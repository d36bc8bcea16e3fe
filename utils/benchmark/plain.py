"""The plain reference that speed is measured against: UniAD as its paper tells it, written without any thought of speed.

It is what the published code runs: every block of the backbone with head and classifier, images in NCHW, nn.MultiheadAttention
that returns its weights, the neighbour mask built by loops in each forward, queries repeated for every image, nn.Dropout,
and the anomaly map computed in training too. It follows a configuration's `net`. Parameters are named as in the model, so the
state_dicts of its backbone and its reconstruction load here.
"""

import math
from collections.abc import Sequence

import efficientnet_lite_pytorch
import efficientnet_pytorch
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.backbones.specs import SPECS


class PlainNetwork(nn.Module):
    """Image to map, for a `net` as load_config returns it; the backbone stays in eval mode and takes no gradients."""

    def __init__(self, net: Sequence[dict]) -> None:
        super().__init__()
        backbone, neck, reconstruction = net
        self.name, self.outlayers = backbone["type"].rsplit(".")[-1], backbone["kwargs"]["outlayers"]
        (self.stride,) = neck["kwargs"]["outstrides"]
        self.backbone = build_backbone(self.name).requires_grad_(False)
        ours_only = ("save_recon", "initializer")  # weights are loaded, and nothing is saved
        self.reconstruction = PlainUniAD(**{k: v for k, v in reconstruction["kwargs"].items() if k not in ours_only})

    def train(self, mode: bool = True) -> "PlainNetwork":
        super().train(mode)
        self.backbone.eval()
        return self

    def extract(self, image: Tensor) -> Tensor:
        """The aligned features, B x C x h x w. image: B x 3 x H x W."""
        layers = resnet_layers if self.name not in EFFICIENTNETS else efficientnet_layers
        features = layers(self.backbone, image, self.name)
        size = [side // self.stride for side in image.shape[2:]]
        aligned = [F.interpolate(features[layer - 1], size, mode="bilinear", align_corners=True) for layer in self.outlayers]
        return torch.cat(aligned, dim=1)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"image": B x 3 x H x W} -> feature_rec, feature_align and pred."""
        return self.reconstruction(self.extract(inputs["image"]))


# ---- backbones: the packages' own networks

EFFICIENTNETS = [name for name in SPECS if name.startswith("efficientnet")]


def build_backbone(name: str) -> nn.Module:
    if name not in EFFICIENTNETS:
        return getattr(torchvision.models, name)()
    package = efficientnet_lite_pytorch if "lite" in name else efficientnet_pytorch
    return package.EfficientNet(*package.get_model_params(name.replace("_", "-"), None))


def efficientnet_layers(backbone: nn.Module, image: Tensor, name: str) -> list[Tensor]:
    """The feature map of every layer; head and classifier are run for nobody."""
    x = backbone._swish(backbone._bn0(backbone._conv_stem(image)))
    outputs = [x := block(x) for block in backbone._blocks]
    x = backbone._swish(backbone._bn1(backbone._conv_head(x)))
    backbone._fc(backbone._dropout(backbone._avg_pooling(x).flatten(start_dim=1)))
    return [outputs[block] for block in SPECS[name].blocks]


def resnet_layers(backbone: nn.Module, image: Tensor, name: str) -> list[Tensor]:
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(image))))
    outputs = [x := layer(x) for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)]
    backbone.fc(backbone.avgpool(x).flatten(start_dim=1))
    return outputs


# ---- reconstruction: tokens come first, then the batch


class PlainUniAD(nn.Module):
    """UniAD on an h x w grid; arguments as in the YAML."""

    def __init__(
        self,
        inplanes: list[int],
        instrides: list[int],
        feature_size: list[int],
        feature_jitter: dict | None,
        neighbor_mask: dict | None,
        hidden_dim: int,
        pos_embed_type: str,
        nhead: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        normalize_before: bool,
    ) -> None:
        super().__init__()
        (channels,), (self.stride,) = inplanes, instrides
        self.feature_size, self.feature_jitter, self.neighbor_mask = feature_size, feature_jitter, neighbor_mask
        position = {"learned": PlainLearnedPosition, "sine": PlainSinePosition}[pos_embed_type]
        self.pos_embed = position(*feature_size, hidden_dim)
        layer = (hidden_dim, nhead, dim_feedforward, dropout, activation, normalize_before)
        encoder = [PlainEncoderLayer(*layer) for _ in range(num_encoder_layers)]
        decoder = [PlainDecoderLayer(math.prod(feature_size), *layer) for _ in range(num_decoder_layers)]
        encoder_norm = nn.LayerNorm(hidden_dim) if normalize_before else nn.Identity()
        self.transformer = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict({"layers": nn.ModuleList(encoder), "norm": encoder_norm}),
                "decoder": nn.ModuleDict({"layers": nn.ModuleList(decoder), "norm": nn.LayerNorm(hidden_dim)}),
            }
        )
        self.input_proj, self.output_proj = nn.Linear(channels, hidden_dim), nn.Linear(hidden_dim, channels)

    def forward(self, feature_align: Tensor) -> dict[str, Tensor]:
        tokens = feature_align.flatten(2).permute(2, 0, 1)  # HW x B x C
        if self.training and self.feature_jitter:
            tokens = self.jitter(tokens)
        pos = self.pos_embed().to(tokens.device).unsqueeze(1).repeat(1, tokens.shape[1], 1)  # HW x B x D
        decoded = self.transform(self.input_proj(tokens), pos)  # HW x B x D
        feature_rec = self.output_proj(decoded).permute(1, 2, 0).reshape(feature_align.shape)
        distance = torch.sqrt(torch.sum((feature_rec - feature_align) ** 2, dim=1, keepdim=True))
        pred = F.interpolate(distance, scale_factor=self.stride, mode="bilinear", align_corners=True)
        return {"feature_rec": feature_rec, "feature_align": feature_align, "pred": pred}

    def transform(self, src: Tensor, pos: Tensor) -> Tensor:
        encoder, decoder = self.transformer["encoder"], self.transformer["decoder"]
        encoder_mask, query_mask, memory_mask = self.build_masks(src.device)
        memory = src
        for layer in encoder["layers"]:
            memory = layer(memory, pos, encoder_mask)
        out = memory = encoder["norm"](memory)
        for layer in decoder["layers"]:
            out = layer(out, memory, pos, query_mask, memory_mask)
        return decoder["norm"](out)

    def jitter(self, tokens: Tensor) -> Tensor:
        if self.feature_jitter["prob"] < 1 and torch.rand(()).item() >= self.feature_jitter["prob"]:
            return tokens
        norms = tokens.norm(dim=2).unsqueeze(2) / tokens.shape[2]  # HW x B x 1
        return tokens + torch.randn(tokens.shape).to(tokens.device) * norms * self.feature_jitter["scale"]

    def build_masks(self, device: torch.device) -> list[Tensor | None]:
        """For the encoder's and the decoder's two attentions: HW x HW, -inf where a token must not look; None: anywhere."""
        if not self.neighbor_mask:
            return [None, None, None]
        (h, w), (a, b) = self.feature_size, (side // 2 for side in self.neighbor_mask["neighbor_size"])
        mask = torch.zeros(h, w, h, w)
        for y in range(h):
            for x in range(w):
                mask[y, x, max(y - a, 0) : y + a + 1, max(x - b, 0) : x + b + 1] = float("-inf")
        mask = mask.reshape(h * w, h * w).to(device)
        return [mask if on else None for on in self.neighbor_mask["mask"]]


class PlainEncoderLayer(nn.Module):
    def __init__(
        self, dim: int, nhead: int, dim_feedforward: int, dropout: float, activation: str, normalize_before: bool
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, nhead, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, dim_feedforward), nn.Linear(dim_feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = getattr(F, activation)
        self.normalize_before = normalize_before

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm1(src) if self.normalize_before else src
        attended, _ = self.self_attn(x + pos, x + pos, value=x, attn_mask=mask)
        src = src + self.dropout(attended)
        if self.normalize_before:
            return src + self.dropout(self.feed_forward(self.norm2(src)))
        src = self.norm1(src)
        return self.norm2(src + self.dropout(self.feed_forward(src)))


class PlainDecoderLayer(PlainEncoderLayer):
    """Its own queries read the memory, then the output of the layer before."""

    def __init__(self, tokens: int, dim: int, nhead: int, dim_feedforward: int, dropout: float, *settings: str | bool) -> None:
        super().__init__(dim, nhead, dim_feedforward, dropout, *settings)
        self.learned_embed = nn.Embedding(tokens, dim)
        self.multihead_attn = nn.MultiheadAttention(dim, nhead, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, out: Tensor, memory: Tensor, pos: Tensor, query_mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        query = self.learned_embed.weight.unsqueeze(1).repeat(1, memory.shape[1], 1)  # HW x B x D
        if self.normalize_before:
            attended, _ = self.self_attn(self.norm1(query) + pos, memory + pos, value=memory, attn_mask=query_mask)
            query = query + self.dropout(attended)
            attended, _ = self.multihead_attn(self.norm2(query) + pos, out + pos, value=out, attn_mask=memory_mask)
            query = query + self.dropout(attended)
            return query + self.dropout(self.feed_forward(self.norm3(query)))
        attended, _ = self.self_attn(query + pos, memory + pos, value=memory, attn_mask=query_mask)
        query = self.norm1(query + self.dropout(attended))
        attended, _ = self.multihead_attn(query + pos, out + pos, value=out, attn_mask=memory_mask)
        query = self.norm2(query + self.dropout(attended))
        return self.norm3(query + self.dropout(self.feed_forward(query)))


class PlainLearnedPosition(nn.Module):
    def __init__(self, h: int, w: int, dim: int) -> None:
        super().__init__()
        self.row_embed, self.col_embed = nn.Embedding(h, dim // 2), nn.Embedding(w, dim // 2)

    def forward(self) -> Tensor:
        rows, columns = self.row_embed.weight, self.col_embed.weight  # h x D/2, w x D/2
        grid = torch.cat([columns.repeat(len(rows), 1, 1), rows.unsqueeze(1).repeat(1, len(columns), 1)], dim=2)  # h x w x D
        return grid.flatten(0, 1)  # HW x D


class PlainSinePosition(nn.Module):
    def __init__(self, h: int, w: int, dim: int) -> None:
        super().__init__()
        self.h, self.w, self.half = h, w, dim // 2

    def forward(self) -> Tensor:
        y = torch.arange(1, self.h + 1).repeat_interleave(self.w) / (self.h + 1e-6)  # HW, from 0 to 1
        x = torch.arange(1, self.w + 1).repeat(self.h) / (self.w + 1e-6)
        channel = torch.arange(self.half)
        frequency = 2 * math.pi / 10000 ** (2 * (channel // 2) / self.half)
        angles = [position.unsqueeze(1) * frequency for position in (y, x)]  # each HW x D/2
        return torch.cat([torch.where(channel % 2 == 0, angle.sin(), angle.cos()) for angle in angles], dim=1)  # HW x D
