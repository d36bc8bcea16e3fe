"""The plain reference that speed is measured against: the network as the published code runs it, without measures for speed.

The backbone runs all blocks, head and classifier. The transformer uses PyTorch's own attention and dropout, and repeats the
queries for every image. Each forward builds the neighbour mask by loops. Parameters are named as in the model.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.backbones.efficientnet import package_network
from models.backbones.specs import SPECS
from models.reconstructions.transformer import DecoderLayer
from models.reconstructions.uniad import UniAD, anomaly_map, jitter


class PlainNetwork(nn.Module):
    """Image to map, for a `net` as load_config returns it. The backbone stays in eval mode and takes no gradients."""

    def __init__(self, net: Sequence[dict]) -> None:
        super().__init__()
        subnet, neck, reconstruction = net
        self.name, self.outlayers = subnet["type"].rsplit(".")[-1], subnet["kwargs"]["outlayers"]
        (self.stride,) = neck["kwargs"]["outstrides"]
        is_efficientnet = self.name.startswith("efficientnet")
        self.layers = efficientnet_layers if is_efficientnet else resnet_layers
        backbone = package_network(self.name) if is_efficientnet else torchvision.models.get_model(self.name)
        self.backbone = backbone.requires_grad_(False)
        self.reconstruction = PlainUniAD(**reconstruction["kwargs"])

    def train(self, mode: bool = True) -> "PlainNetwork":
        super().train(mode)
        self.backbone.eval()
        return self

    def extract(self, inputs: dict[str, Tensor]) -> Tensor:
        """{"image": B x 3 x H x W} -> the aligned features, B x C x h x w."""
        image = inputs["image"]
        features = self.layers(self.backbone, image, self.name)
        size = [side // self.stride for side in image.shape[2:]]
        aligned = [F.interpolate(features[layer - 1], size, mode="bilinear", align_corners=True) for layer in self.outlayers]
        return torch.cat(aligned, dim=1)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"image": B x 3 x H x W} -> feature_rec, feature_align and pred."""
        return self.reconstruction({"feature_align": self.extract(inputs)})


def efficientnet_layers(backbone: nn.Module, image: Tensor, name: str) -> list[Tensor]:
    """The feature map of every layer. The results of head and classifier are not used."""
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


class PlainUniAD(UniAD):
    """UniAD with plain layers on tokens HW x B x D."""

    def __init__(self, feature_size: tuple[int, int], neighbor_mask: dict | None, **kwargs: Any) -> None:
        super().__init__(feature_size=feature_size, neighbor_mask=neighbor_mask, **kwargs)
        self.feature_size, self.neighbor_mask = feature_size, neighbor_mask
        for layer in [*self.transformer.encoder.layers, *self.transformer.decoder.layers]:
            layer.self_attn = PlainAttention(kwargs["hidden_dim"], kwargs["nhead"], dropout=kwargs["dropout"])
            if isinstance(layer, DecoderLayer):
                layer.multihead_attn = PlainAttention(kwargs["hidden_dim"], kwargs["nhead"], dropout=kwargs["dropout"])
                layer.queries = partial(repeated_queries, layer.learned_embed)
            layer.dropout = nn.Dropout(kwargs["dropout"])

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        feature_align = inputs["feature_align"]  # B x C x h x w
        tokens = feature_align.flatten(2).permute(2, 0, 1)  # HW x B x C
        if self.training and self.feature_jitter:
            tokens = jitter(tokens, **self.feature_jitter)
        pos = self.pos_embed().unsqueeze(1).repeat(1, tokens.shape[1], 1)  # HW x B x D
        mask = self.build_mask().to(tokens.device) if self.neighbor_mask else None
        encoder_mask, query_mask, memory_mask = (mask if on else None for on in self.masked)
        memory = self.transformer.encoder(self.input_proj(tokens), pos, encoder_mask)  # HW x B x D
        decoded = self.transformer.decoder(memory, pos, query_mask, memory_mask)  # HW x B x D
        feature_rec = self.output_proj(decoded).permute(1, 2, 0).reshape(feature_align.shape)
        pred = anomaly_map(feature_rec, feature_align, self.stride)
        return {"feature_rec": feature_rec, "feature_align": feature_align, "pred": pred}

    def build_mask(self) -> Tensor:
        """HW x HW: -inf between neighbours, else 0."""
        (h, w), (a, b) = self.feature_size, (side // 2 for side in self.neighbor_mask["neighbor_size"])
        mask = torch.zeros(h, w, h, w)
        for y in range(h):
            for x in range(w):
                mask[y, x, max(y - a, 0) : y + a + 1, max(x - b, 0) : x + b + 1] = float("-inf")
        return mask.reshape(h * w, h * w)


class PlainAttention(nn.MultiheadAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return super().forward(query, key, value, attn_mask=mask)[0]


def repeated_queries(learned_embed: nn.Embedding, memory: Tensor) -> Tensor:
    """memory: HW x B x D. Returns the queries repeated for every image, HW x B x D."""
    return learned_embed.weight.unsqueeze(1).repeat(1, memory.shape[1], 1)
