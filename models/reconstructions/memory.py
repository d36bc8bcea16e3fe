"""Memory reconstructs a token as the nearest normal token it has seen: nothing is trained.

The idea is PatchCore's (Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022), with one memory for
many classes.
"""

import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.reconstructions.uniad import as_number, enlarge
from utils.errors import UserError
from utils.reading import parse_json

BLOCK = 1024  # tokens compared at a time: the distances to them stay in a processor's cache
PROJECTED = 32  # dimensions of the random projection in which a coreset is chosen


class Memory(nn.Module):
    """Normal tokens, and the distance to the nearest of them.

    Args:
        inplanes, instrides: channels and stride of `feature_align`: a number, or a list of one.
        max_tokens: of all classes together.
        smooth: side of the window over which features are averaged, with zeros around the grid; 1: none.
        coreset: how each class's tokens are chosen: "greedy", far from each other, or "random".
        distance: "deviations", Euclidean over sqrt(C), each channel in units of its deviation, which suits CNNs; or "angle",
            Euclidean between tokens of length 1, which suits ViTs.
        save_recon: {"save_dir"}; evaluation writes the reconstructed features there. False: it does not.

    Its buffers are M tokens as they are compared, with `owner`, M, the number of a token's class, and `names`, the classes as
    JSON in bytes. They take the size of what is loaded. Raises UserError for a window that has no middle.
    """

    growing = ("tokens", "owner", "names")  # buffers whose length a checkpoint decides

    def __init__(
        self,
        inplanes: int | list[int],
        instrides: int | list[int],
        max_tokens: int = 20000,
        smooth: int = 3,
        coreset: str = "greedy",
        distance: str = "deviations",
        save_recon: dict | bool = False,
    ) -> None:
        super().__init__()
        if smooth % 2 == 0:
            raise UserError(f"smooth {smooth} must be odd, so that the window has a middle")
        channels, self.stride = as_number(inplanes), as_number(instrides)
        self.max_tokens, self.smooth, self.coreset, self.by_angle = max_tokens, smooth, coreset, distance == "angle"
        self.save_recon = dict(save_recon) if save_recon else None
        self.only: str | None = None  # a class: only its tokens are compared with
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("tokens", torch.zeros(0, channels))
        self.register_buffer("owner", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("names", as_bytes([]))

    @property
    def classes(self) -> list[str]:
        try:
            names = parse_json(self.names.cpu().numpy().tobytes())
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError("the memory's list of classes is damaged: fill it again")
        return names

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes `feature_align` BxCxhxw; returns `feature_rec` BxCxhxw, the nearest tokens, smoothed as the features are.

        Also `distance` Bx1xhxw and the anomaly map `pred` Bx1xHxW, the distance at the image's size. By angle, a reconstruction
        has the length of what it stands for. An image's numbers do not depend on the other images of its batch.
        """
        with torch.autocast(inputs["feature_align"].device.type, enabled=False):
            features = self.average(inputs["feature_align"].float())  # B x C x h x w
            queries = self.comparable(features).movedim(1, -1)  # B x h x w x C
            tokens = self.compared()
            # Image by image the arithmetic is the same in every batch; a graph to export cannot loop over a batch.
            parts = [queries.flatten(0, 2)] if in_graph() else [image.flatten(0, 1) for image in queries]
            nearest = torch.cat([tokens[find_nearest(part, tokens)] for part in parts]).view_as(queries)
            squares = (queries - nearest).square()
            distance = (squares.sum(dim=-1) if self.by_angle else squares.mean(dim=-1)).sqrt()[:, None]  # B x 1 x h x w
            if self.by_angle:
                feature_rec = nearest.movedim(-1, 1) * features.norm(dim=1, keepdim=True)
            else:
                feature_rec = nearest.movedim(-1, 1) * self.deviation[:, None, None] + self.mean[:, None, None]
        return {
            "feature_rec": feature_rec,
            "distance": distance,
            "pred": enlarge(distance, [n * self.stride for n in distance.shape[2:]]),
        }

    def average(self, features: Tensor) -> Tensor:
        """Each place of BxCxhxw as the mean of its neighbourhood."""
        return F.avg_pool2d(features, self.smooth, stride=1, padding=self.smooth // 2) if self.smooth > 1 else features

    def comparable(self, features: Tensor) -> Tensor:
        """BxCxhxw with each token of length 1, or in units of each channel's deviation; a constant channel becomes 0."""
        if self.by_angle:
            return F.normalize(features, dim=1)
        scale = torch.where(self.deviation > 0, 1 / self.deviation, 0.0)
        return (features - self.mean[:, None, None]) * scale[:, None, None]

    def compared(self) -> Tensor:
        """The tokens to compare with: all, or those of the class `only`. Raises UserError where there are none."""
        if self.only is None:
            if not len(self.tokens):
                raise UserError("the memory holds no tokens: train first")
            return self.tokens
        if self.only not in self.classes:
            raise UserError(f"the memory has no class '{self.only}': its classes are {', '.join(self.classes)}")
        return self.tokens[self.owner == self.classes.index(self.only)]

    def fill(self, samples: dict[str, Tensor], total: int, seed: int) -> None:
        """Take in new classes: `samples` holds random normal tokens of each, NxC, smoothed, in the features' own units.

        The first call also decides the units; what is in the memory stays as it is. Each class gets an equal share of `total`
        tokens, unless it has fewer. Raises UserError where that is less than a token a class.
        """
        quotas = shares({name: len(tokens) for name, tokens in samples.items()}, total)
        if not len(self.tokens) and not self.by_angle:
            variance, self.mean = torch.var_mean(torch.cat(list(samples.values())), dim=0, correction=0)
            deviation = variance.sqrt()
            self.deviation = deviation.masked_fill(deviation <= 1e-6 * self.mean.abs(), 0)
        classes = self.classes
        for name, tokens in samples.items():
            tokens = self.comparable(tokens.T[None, :, :, None])[0, :, :, 0].T  # N x C
            chosen = tokens[choose(tokens, quotas[name], self.coreset, seed)]
            self.tokens = torch.cat([self.tokens, chosen])
            self.owner = torch.cat([self.owner, self.owner.new_full((len(chosen),), len(classes))])
            classes.append(name)
        self.names = as_bytes(classes).to(self.names.device)


def in_graph() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def find_nearest(queries: Tensor, tokens: Tensor) -> Tensor:
    """For each query of NxC the position of the nearest token of MxC; exact, with BLOCK x N distances in memory at a time."""
    least = torch.full_like(queries[:, 0], torch.inf)
    nearest = torch.zeros_like(least, dtype=torch.long)
    for first, part in zip(range(0, len(tokens), BLOCK), tokens.split(BLOCK), strict=True):
        # Half of the squared distance, without the query's own norm, which is the same for all tokens.
        half_norms = part.square().sum(dim=1, keepdim=True) / 2
        values, places = torch.addmm(half_norms, part, queries.T, alpha=-1).min(dim=0)  # N, N
        nearer = values < least
        least, nearest = torch.where(nearer, values, least), torch.where(nearer, places + first, nearest)
    return nearest


def shares(counts: dict[str, int], total: int) -> dict[str, int]:
    """How many of each class's `counts` tokens to keep, of `total`: equal shares; what a small class leaves the others get."""
    if total < len(counts):
        raise UserError(f"{total} tokens are less than one for each of {len(counts)} classes: raise max_tokens")
    result, left = {}, total
    for place, name in enumerate(sorted(counts, key=counts.get)):
        result[name] = min(counts[name], left // (len(counts) - place))
        left -= result[name]
    return result


def choose(tokens: Tensor, count: int, coreset: str, seed: int) -> Tensor:
    """Positions of `count` of the N tokens, NxC; those of a greedy coreset are each the farthest from all chosen before.

    Distances are taken in a random projection, as in PatchCore.
    """
    generator = torch.Generator().manual_seed(seed)
    if coreset == "random" or count >= len(tokens):
        return torch.randperm(len(tokens), generator=generator)[:count].to(tokens.device)
    projection = torch.randn(tokens.shape[1], PROJECTED, generator=generator).to(tokens.device)
    points = tokens @ projection  # N x P
    half_norms = points.square().sum(dim=1) / 2  # N
    chosen = torch.zeros(count, dtype=torch.long, device=tokens.device)
    least = torch.full((len(points),), torch.inf, device=tokens.device)  # half of the squared distance to the nearest chosen one
    for place in range(1, count):
        last = chosen[place - 1]
        torch.minimum(least, torch.addmv(half_norms + half_norms[last], points, points[last], alpha=-1), out=least)
        chosen[place] = least.argmax()
    return chosen


def as_bytes(names: Sequence[str]) -> Tensor:
    """A list of texts as JSON in bytes, uint8: a checkpoint's state holds tensors only."""
    return torch.frombuffer(bytearray(json.dumps(list(names), ensure_ascii=False).encode()), dtype=torch.uint8)
