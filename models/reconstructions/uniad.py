"""UniAD reconstructs a feature grid without learning to copy it (You et al., NeurIPS 2022, section 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initializer import initialize
from models.reconstructions.position import build_position_embedding
from models.reconstructions.transformer import Transformer
from utils.errors import UserError


class UniAD(nn.Module):
    """Neighbour-masked transformer with a layer-wise query decoder.

    Args:
        inplanes, instrides: channels and stride of `feature_align`: a number, or a list of one.
        feature_size: (h, w) of the feature grid.
        feature_jitter: {"scale", "prob"}, noise on the training input (section 3.4); None or False for none.
        neighbor_mask: {"neighbor_size": (a, b), "mask": (encoder, decoder 1, decoder 2)} (section 3.3); None or False for none.
        pos_embed_type: "learned" or "sine".
        save_recon: {"save_dir"}; evaluation writes the reconstructed features there. False: it does not.
        initializer: {"method": ...}, see models.initializer.

    Raises UserError for inconsistent sizes.
    """

    def __init__(
        self,
        inplanes: int | list[int],
        instrides: int | list[int],
        feature_size: tuple[int, int],
        feature_jitter: dict | bool | None = None,
        neighbor_mask: dict | bool | None = None,
        hidden_dim: int = 256,
        pos_embed_type: str = "learned",
        save_recon: dict | bool = False,
        initializer: dict | None = None,
        nhead: int = 8,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % nhead or hidden_dim % 4:
            raise UserError(f"hidden_dim {hidden_dim} must be a multiple of nhead {nhead} and of 4")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout {dropout} must be at least 0 and less than 1")
        channels, self.stride = as_number(inplanes), as_number(instrides)
        self.feature_jitter = dict(feature_jitter) if feature_jitter else None
        self.save_recon = dict(save_recon) if save_recon else None
        neighbor_mask = neighbor_mask or {"neighbor_size": None, "mask": (False, False, False)}
        self.masked = tuple(neighbor_mask["mask"])  # encoder, decoder attention 1, decoder attention 2
        self.register_buffer("mask", None, persistent=False)
        if neighbor_mask["neighbor_size"] and any(self.masked):
            self.mask = build_neighbor_mask(tuple(feature_size), tuple(neighbor_mask["neighbor_size"]))

        self.pos_embed = build_position_embedding(pos_embed_type, tuple(feature_size), hidden_dim)
        self.transformer = Transformer(
            num_tokens=feature_size[0] * feature_size[1],
            hidden_dim=hidden_dim,
            nhead=nhead,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            normalize_before=normalize_before,
        )
        self.input_proj = nn.Linear(channels, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, channels)
        initialize(self, **(initializer or {}))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes `feature_align` BxCxhxw; returns it and `feature_rec` BxCxhxw.

        In eval mode also their `distance` Bx1xhxw and the anomaly map `pred` Bx1xHxW, the distance at the image's size.
        """
        feature_align = as_float32(inputs["feature_align"])  # B x C x h x w
        tokens = feature_align.flatten(2).transpose(1, 2)  # B x hw x C
        if self.training and self.feature_jitter:
            tokens = jitter(tokens, **self.feature_jitter)

        encoder_mask, query_mask, memory_mask = (self.mask if on else None for on in self.masked)
        embedded = self.input_proj(tokens)  # B x hw x D
        pos = self.pos_embed().to(embedded.dtype)  # hw x D
        memory = self.transformer.encoder(embedded, pos, encoder_mask)  # B x hw x D
        decoded = self.transformer.decoder(memory, pos, query_mask, memory_mask)  # B x hw x D
        rec_tokens = as_float32(self.output_proj(decoded))  # B x hw x C

        feature_rec = rec_tokens.transpose(1, 2).reshape(feature_align.shape)  # B x C x h x w
        outputs = {"feature_rec": feature_rec, "feature_align": feature_align}
        if not self.training:
            outputs["distance"] = distance = feature_distance(feature_rec, feature_align)  # B x 1 x h x w
            outputs["pred"] = enlarge(distance, [n * self.stride for n in distance.shape[2:]])  # B x 1 x H x W
        return outputs


def as_float32(x: Tensor) -> Tensor:
    """Distance, map and loss are computed in float32, also if autocast runs the layers in another type."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def jitter(tokens: Tensor, scale: float, prob: float) -> Tensor:
    """Feature jittering (section 3.4): with probability `prob` for the whole batch, add noise proportional to each token's norm.

    tokens: B x hw x C.
    """
    applies = torch.rand((), device=tokens.device) < prob if prob < 1 else 1  # decided on the device, which need not wait
    # randn_like would keep the strides of transposed tokens, and fill them several times slower
    noise = torch.randn(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    deviation = tokens.norm(dim=2, keepdim=True) * (scale / tokens.shape[2])  # B x hw x 1
    return tokens + noise * (deviation * applies)


def feature_distance(feature_rec: Tensor, feature_align: Tensor) -> Tensor:
    """L2 norm over channels of the difference: Bx1xhxw (section 3.5)."""
    return (feature_rec - feature_align).square().sum(dim=1, keepdim=True).sqrt()


def enlarge(distance: Tensor, size: Sequence[int]) -> Tensor:
    """Distances Bx1xhxw, resized bilinearly to Bx1xHxW; size: (H, W)."""
    return F.interpolate(distance, size=tuple(size), mode="bilinear", align_corners=True)


def anomaly_map(feature_rec: Tensor, feature_align: Tensor, stride: int) -> Tensor:
    """Anomaly map Bx1x(h*stride)x(w*stride) of features BxCxhxw and their reconstruction."""
    distance = feature_distance(feature_rec, feature_align)
    return enlarge(distance, [n * stride for n in distance.shape[2:]])


def build_neighbor_mask(feature_size: tuple[int, int], neighbor_size: tuple[int, int]) -> Tensor:
    """The mask added to attention scores, hw x hw: -inf where key and query are neighbours, else 0 (section 3.3).

    Neighbours are at most a//2 rows and b//2 columns apart. Raises UserError if a token has no key left.
    """
    (h, w), (a, b) = feature_size, neighbor_size
    y, x = torch.arange(h), torch.arange(w)
    near_rows = (y[:, None] - y[None, :]).abs() <= a // 2  # h x h
    near_columns = (x[:, None] - x[None, :]).abs() <= b // 2  # w x w
    near = (near_rows[:, None, :, None] & near_columns[None, :, None, :]).reshape(h * w, h * w)
    if near.all(dim=1).any():
        raise UserError(
            f"neighbor_size {a}x{b} covers the whole {h}x{w} feature grid for some token, so it has nothing to attend to: "
            "use a smaller neighbor_size or a larger input_size"
        )
    return torch.zeros(h * w, h * w).masked_fill_(near, float("-inf"))


def as_number(value: int | list[int]) -> int:
    """The number, given as such or as a list of one: UniAD takes one feature map."""
    if isinstance(value, int):
        return value
    (number,) = value
    return number
