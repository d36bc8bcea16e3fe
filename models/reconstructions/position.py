"""Position embeddings of the feature grid: hw x D, the same for every image."""

import math

import torch
from torch import Tensor, nn

from utils.errors import UserError


class LearnedPosition(nn.Module):
    """One table for rows and one for columns. A position is its column's vector followed by its row's."""

    def __init__(self, feature_size: tuple[int, int], hidden_dim: int) -> None:
        super().__init__()
        h, w = feature_size
        self.row_embed = nn.Embedding(h, hidden_dim // 2)
        self.col_embed = nn.Embedding(w, hidden_dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self) -> Tensor:
        rows, columns = self.row_embed.weight, self.col_embed.weight  # h x D/2, w x D/2
        h, w = len(rows), len(columns)
        grid = torch.cat([columns.expand(h, -1, -1), rows[:, None].expand(-1, w, -1)], dim=-1)  # h x w x D
        return grid.flatten(0, 1)  # hw x D


class SinePosition(nn.Module):
    """The fixed embedding of DETR (Carion et al., 2020): row part, then column part, with coordinates scaled to 0..2π."""

    def __init__(self, feature_size: tuple[int, int], hidden_dim: int, temperature: float = 10000) -> None:
        super().__init__()
        h, w = feature_size
        half = hidden_dim // 2
        period = temperature ** (2 * (torch.arange(half) // 2) / half)  # D/2

        def embed(length: int) -> Tensor:
            position = torch.arange(1, length + 1) / (length + 1e-6) * 2 * math.pi
            angle = position[:, None] / period  # length x D/2
            return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

        rows, columns = embed(h), embed(w)
        grid = torch.cat([rows[:, None].expand(-1, w, -1), columns.expand(h, -1, -1)], dim=-1)  # h x w x D
        self.register_buffer("embedding", grid.flatten(0, 1), persistent=False)

    def forward(self) -> Tensor:
        return self.embedding  # hw x D


POSITION_EMBEDDINGS = {"learned": LearnedPosition, "sine": SinePosition}


def build_position_embedding(pos_embed_type: str, feature_size: tuple[int, int], hidden_dim: int) -> nn.Module:
    """A module that returns the embedding, hw x D. Raises UserError for an unknown type."""
    if pos_embed_type not in POSITION_EMBEDDINGS:
        raise UserError(f"pos_embed_type '{pos_embed_type}' is unknown: use one of {', '.join(POSITION_EMBEDDINGS)}")
    return POSITION_EMBEDDINGS[pos_embed_type](feature_size, hidden_dim)
