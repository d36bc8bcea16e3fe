"""The plain reference that speed is measured against: UniAD as its paper tells it, written without any thought of speed.

It is what the published code runs: every block of the backbone with head and classifier, images in NCHW, nn.MultiheadAttention
that returns its weights, the neighbour mask built by loops in each forward, queries repeated for every image, F.dropout,
and the anomaly map computed in training too. Parameters are named as in the model, so its state_dict loads here.
"""

import efficientnet_pytorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.specs import SPECS


class PlainBackbone(efficientnet_pytorch.EfficientNet):
    """EfficientNet with its whole forward; gives the outputs of chosen blocks."""

    def __init__(self, name: str, outlayers: list[int]) -> None:
        super().__init__(*efficientnet_pytorch.get_model_params(name.replace("_", "-"), None))
        self.outblocks = [SPECS[name].blocks[layer - 1] for layer in outlayers]

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self._swish(self._bn0(self._conv_stem(image)))
        outputs = []
        for index, block in enumerate(self._blocks):
            x = block(x, drop_connect_rate=self._global_params.drop_connect_rate * index / len(self._blocks))
            outputs.append(x)
        x = self._swish(self._bn1(self._conv_head(x)))
        self._fc(self._dropout(self._avg_pooling(x).flatten(start_dim=1)))
        return [outputs[index] for index in self.outblocks]


class PlainEncoderLayer(nn.Module):
    def __init__(self, dim: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, nhead, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, dim_feedforward), nn.Linear(dim_feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        attended, _ = self.self_attn(src + pos, src + pos, value=src, attn_mask=mask)
        src = self.norm1(src + self.dropout(attended))
        return self.norm2(src + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(src))))))


class PlainDecoderLayer(nn.Module):
    def __init__(self, tokens: int, dim: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.learned_embed = nn.Embedding(tokens, dim)
        self.self_attn = nn.MultiheadAttention(dim, nhead, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(dim, nhead, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, dim_feedforward), nn.Linear(dim_feedforward, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, out: Tensor, memory: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        query = self.learned_embed.weight.unsqueeze(1).repeat(1, memory.shape[1], 1)  # HW x B x D
        attended, _ = self.self_attn(query + pos, memory + pos, value=memory, attn_mask=mask)
        query = self.norm1(query + self.dropout(attended))
        attended, _ = self.multihead_attn(query + pos, out + pos, value=out, attn_mask=mask)
        query = self.norm2(query + self.dropout(attended))
        return self.norm3(query + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(query))))))


class PlainTransformer(nn.Module):
    def __init__(self, tokens: int, dim: int, nhead: int, layers: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        encoder = [PlainEncoderLayer(dim, nhead, dim_feedforward, dropout) for _ in range(layers)]
        decoder = [PlainDecoderLayer(tokens, dim, nhead, dim_feedforward, dropout) for _ in range(layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(encoder)})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(decoder), "norm": nn.LayerNorm(dim)})

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        for layer in self.encoder["layers"]:
            src = layer(src, pos, mask)
        out = src
        for layer in self.decoder["layers"]:
            out = layer(out, src, pos, mask)
        return self.decoder["norm"](out)


class PlainPosition(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.row_embed, self.col_embed = nn.Embedding(size, dim // 2), nn.Embedding(size, dim // 2)

    def forward(self) -> Tensor:
        size = self.row_embed.num_embeddings
        rows, columns = self.row_embed(torch.arange(size)), self.col_embed(torch.arange(size))
        return torch.cat([columns.repeat(size, 1, 1), rows.unsqueeze(1).repeat(1, size, 1)], dim=-1).flatten(0, 1)  # HW x D


class PlainUniAD(nn.Module):
    """The reconstruction of the MVTec-AD configuration on a grid of `size` x `size`; tokens come first, then the batch."""

    def __init__(self, channels: int = 272, size: int = 14, stride: int = 16, window: int = 7, dropout: float = 0.1) -> None:
        super().__init__()
        self.size, self.stride, self.window = size, stride, window
        self.pos_embed = PlainPosition(size, 256)
        self.transformer = PlainTransformer(size * size, 256, 8, 4, 1024, dropout)
        self.input_proj, self.output_proj = nn.Linear(channels, 256), nn.Linear(256, channels)

    def forward(self, feature_align: Tensor) -> dict[str, Tensor]:
        tokens = feature_align.flatten(2).permute(2, 0, 1)  # HW x B x C
        if self.training:
            norms = tokens.norm(dim=2).unsqueeze(2) / tokens.shape[2]
            tokens = tokens + torch.randn(tokens.shape) * norms * 20.0
        pos = self.pos_embed().unsqueeze(1).repeat(1, tokens.shape[1], 1)  # HW x B x D
        decoded = self.transformer(self.input_proj(tokens), pos, self.neighbor_mask())
        feature_rec = self.output_proj(decoded).permute(1, 2, 0).reshape(feature_align.shape)
        distance = torch.sqrt(torch.sum((feature_rec - feature_align) ** 2, dim=1, keepdim=True))
        pred = F.interpolate(distance, scale_factor=self.stride, mode="bilinear", align_corners=True)
        return {"feature_rec": feature_rec, "feature_align": feature_align, "pred": pred}

    def neighbor_mask(self) -> Tensor:
        size, reach = self.size, self.window // 2
        mask = torch.zeros(size, size, size, size)
        for y in range(size):
            for x in range(size):
                mask[y, x, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = float("-inf")
        return mask.reshape(size * size, size * size)


class PlainNetwork(nn.Module):
    """Image to map with the backbone `efficientnet_b4`; the backbone stays in eval mode and takes no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = PlainBackbone("efficientnet_b4", [1, 2, 3, 4]).requires_grad_(False)
        self.reconstruction = PlainUniAD()

    def train(self, mode: bool = True) -> "PlainNetwork":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.backbone(image)
        size = [side // 16 for side in image.shape[2:]]
        aligned = [F.interpolate(feature, size=size, mode="bilinear", align_corners=True) for feature in features]
        return self.reconstruction(torch.cat(aligned, dim=1))
