"""Fast dropout on CPU.

On CPU the random numbers of torch's dropout cost as much as the matrix products around it, and attention with dropout cannot
use the fused kernels. Here a mask takes 16 random bits per element from a fast generator. Torch's generator seeds it, so
torch.manual_seed and a restored random state determine every mask. On other devices torch's dropout is used.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 2**16  # a rate is rounded to a multiple of 1 / STEPS, and the scale is that of the rounded rate, so the mean is exact


class Masks:
    """Draws masks of dropout with rate `p`."""

    def __init__(self, p: float) -> None:
        dropped = round(p * STEPS)
        self.lowest_kept = dropped - STEPS // 2
        self.scale = STEPS / (STEPS - dropped)
        self.generator = np.random.SFC64(int(torch.randint(2**62, ())))

    def draw(self, like: Tensor) -> Tensor:
        """1 where an element is kept, else 0. int16 is several times faster than bool."""
        if like.is_meta:
            return torch.empty_like(like, dtype=torch.int16)
        bits = torch.from_numpy(self.generator.random_raw(-(-like.numel() // 4))).view(torch.int16)[: like.numel()]
        return torch.ge(bits, self.lowest_kept, out=bits).view(like.shape)


class Dropout(nn.Module):
    """nn.Dropout."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        if not uses_cpu_kernel(x):
            return F.dropout(x, self.p)
        masks = Masks(self.p)
        return x * masks.draw(x).to(x.dtype) * masks.scale


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Scaled dot-product attention with dropout of rate `p` on its weights.

    q: B x heads x L x d; k, v: B x heads x S x d; mask: L x S, added to the scores. Returns B x heads x L x d.
    """
    mask = None if mask is None else mask.to(q.dtype)
    if not (p and uses_cpu_kernel(q)):
        return F.scaled_dot_product_attention(q, k, v, mask, p)
    scaled_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q * q.shape[3] ** -0.5, k, v))  # (B heads) x L or S x d
    scores = torch.bmm(scaled_q, flat_k.mT) if mask is None else torch.baddbmm(mask, scaled_q, flat_k.mT)
    weights = scores.softmax(dim=-1)  # (B heads) x L x S
    masks = Masks(p)
    attended = torch.bmm(weights * masks.draw(weights).to(weights.dtype), flat_v) * masks.scale
    return attended.unflatten(0, q.shape[:2])


def uses_cpu_kernel(x: Tensor) -> bool:
    """Whether dropout of x uses this module's masks. torch.compile has its own, and would break its graph at these.

    The meta device stands for the CPU: see utils/training/footprint.py.
    """
    return x.device.type in ("cpu", "meta") and not torch.compiler.is_compiling()
