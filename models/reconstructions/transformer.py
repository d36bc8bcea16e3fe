"""UniAD's transformer: an encoder with masked self-attention, a decoder with learned queries in every layer."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout, attention
from utils.errors import UserError

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class Transformer(nn.Module):
    """Encoder and decoder. All layers of each start as copies of one layer, as in the published model."""

    def __init__(
        self,
        num_tokens: int,
        hidden_dim: int,
        nhead: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        normalize_before: bool,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"activation '{activation}' is unknown: use one of {', '.join(ACTIVATIONS)}")
        layer = (hidden_dim, nhead, dim_feedforward, dropout, activation, normalize_before)
        self.encoder = Encoder(EncoderLayer(*layer), num_encoder_layers, nn.LayerNorm(hidden_dim) if normalize_before else None)
        self.decoder = Decoder(DecoderLayer(num_tokens, *layer), num_decoder_layers, nn.LayerNorm(hidden_dim))


class Encoder(nn.Module):
    def __init__(self, layer: nn.Module, num_layers: int, norm: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = norm

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        """x: B x hw x D; pos: hw x D; mask: hw x hw. Returns the memory, B x hw x D."""
        for layer in self.layers:
            x = layer(x, pos, mask)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    def __init__(self, layer: nn.Module, num_layers: int, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = norm

    def forward(self, memory: Tensor, pos: Tensor, query_mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        """memory: B x hw x D; pos: hw x D; masks: hw x hw, of attention 1 and 2. Returns B x hw x D."""
        out = memory  # the first layer reads the memory as the previous layer's output
        for layer in self.layers:
            out = layer(out, memory, pos, query_mask, memory_mask)
        return self.norm(out)


class EncoderLayer(nn.Module):
    """Masked self-attention and a feed-forward, each with residual and norm (before it if `normalize_before`)."""

    def __init__(
        self, hidden_dim: int, nhead: int, dim_feedforward: int, dropout: float, activation: str, normalize_before: bool
    ) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_dim, nhead, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.normalize_before = normalize_before

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        if self.normalize_before:
            x = x + self.dropout(self.attend(self.norm1(x), pos, mask))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attend(x, pos, mask)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))

    def attend(self, x: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        located = x + pos
        return self.self_attn(located, located, x, mask)


class DecoderLayer(nn.Module):
    """Layer-wise query decoder (section 3.2): this layer's own queries read the memory, then the previous layer's output.

    Both attentions are cross-attentions; `self_attn` and `multihead_attn` are the names in published checkpoints.
    """

    def __init__(
        self,
        num_tokens: int,
        hidden_dim: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        normalize_before: bool,
    ) -> None:
        super().__init__()
        self.learned_embed = nn.Embedding(num_tokens, hidden_dim)  # starts N(0, 1)
        self.self_attn = Attention(hidden_dim, nhead, dropout)
        self.multihead_attn = Attention(hidden_dim, nhead, dropout)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.normalize_before = normalize_before

    feed_forward = EncoderLayer.feed_forward

    def queries(self, memory: Tensor) -> Tensor:
        """1 x hw x D: every image has the same queries."""
        return self.learned_embed.weight[None].to(memory.dtype)

    def forward(self, out: Tensor, memory: Tensor, pos: Tensor, query_mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        """out, memory: B x hw x D; pos: hw x D; masks: hw x hw. Returns B x hw x D."""
        x = self.queries(memory)  # 1 x hw x D until the first attention has read the memory
        if self.normalize_before:  # only queries are normalised, not the memory and the previous output
            x = x + self.dropout(self.self_attn(self.norm1(x) + pos, memory + pos, memory, query_mask))
            x = x + self.dropout(self.multihead_attn(self.norm2(x) + pos, out + pos, out, memory_mask))
            return x + self.dropout(self.feed_forward(self.norm3(x)))
        x = self.norm1(x + self.dropout(self.self_attn(x + pos, memory + pos, memory, query_mask)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + pos, out + pos, out, memory_mask)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class Attention(nn.Module):
    """Multi-head attention with the parameters of nn.MultiheadAttention, batch first, without returned weights."""

    def __init__(self, hidden_dim: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead = nhead
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query: B or 1 x L x D; key, value: B x S x D; mask: L x S, added to the scores. Returns B x L x D."""
        (w_q, w_k, w_v), (b_q, b_k, b_v) = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)
        q, k, v = (x.unflatten(2, (self.nhead, -1)).transpose(1, 2) for x in (q, k, v))  # B x heads x L or S x D/heads
        attended = attention(q.expand(k.shape[0], -1, -1, -1), k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))
