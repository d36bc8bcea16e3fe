"""Fast dropout on CPU.

On CPU the random numbers of torch's dropout cost as much as the matrix products around it, and attention with dropout cannot
use the fused kernels. Here a mask takes 16 random bits per element from a fast generator. Torch's generator seeds it, so
torch.manual_seed and a restored random state determine every mask. On other devices torch's dropout is used.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

STEPS = 2**16  # a rate is rounded to a multiple of 1 / STEPS, and the scale is that of the rounded rate, so the mean is exact
BLOCK = 2**20  # bytes of a tensor processed at a time, to stay in a core's cache


class Masks:
    """Draws masks of dropout with rate `p`, and applies them."""

    def __init__(self, p: float) -> None:
        dropped = round(p * STEPS)
        self.lowest_kept = dropped - STEPS // 2
        self.scale = STEPS / (STEPS - dropped)
        self.generator = np.random.SFC64(int(torch.randint(2**62, ())))

    def draw(self, like: Tensor) -> Tensor:
        """1 where an element is kept, else 0. int16 is several times faster than bool."""
        bits = torch.from_numpy(self.generator.random_raw(-(-like.numel() // 4))).view(torch.int16)[: like.numel()]
        return torch.ge(bits, self.lowest_kept, out=bits).view(like.shape)

    def drop(self, x: Tensor, out: Tensor) -> Tensor:
        """x where kept, else 0, not yet scaled. 16-bit floats are multiplied by 0 or 1 as integers."""
        keep = self.draw(x)
        if x.element_size() == 2:
            torch.mul(x.view(torch.int16), keep, out=out.view(torch.int16))
        else:
            torch.mul(x, keep.to(x.dtype), out=out)
        return out


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


class ActivationDropout(Dropout):
    """An activation, then dropout."""

    def __init__(self, activation: Callable[[Tensor], Tensor], p: float) -> None:
        super().__init__(p)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p and self.activation is F.relu and uses_cpu_kernel(x):
            return _ReluDropout.apply(x, self.p)
        return super().forward(self.activation(x))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Scaled dot-product attention with dropout of rate `p` on its weights.

    q: B x heads x L x d; k, v: B x heads x S x d; mask: L x S, added to the scores. Returns B x heads x L x d.
    """
    mask = None if mask is None else mask.to(q.dtype)
    if not (p and uses_cpu_kernel(q)):
        return F.scaled_dot_product_attention(q, k, v, mask, p)
    heads = [x.flatten(0, 1) for x in (q * q.shape[3] ** -0.5, k, v)]  # (B heads) x L or S x d
    return _DroppedAttention.apply(*heads, mask, p).unflatten(0, q.shape[:2])


def uses_cpu_kernel(x: Tensor) -> bool:
    """Whether dropout of x uses this module's masks. torch.compile has its own, and would break its graph at these."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _ReluDropout(torch.autograd.Function):
    """The output is positive exactly where the gradient passes, so no mask is saved."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, p: float) -> Tensor:
        masks, dropped = Masks(p), torch.empty_like(x)
        for x_, dropped_ in _blocks(x, dropped):
            torch.clamp_min(x_, 0, out=dropped_)
            masks.drop(dropped_, out=dropped_).mul_(masks.scale)
        ctx.scale = masks.scale
        ctx.save_for_backward(dropped)
        return dropped

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        grad_x = torch.empty_like(dropped)
        for grad_, dropped_, grad_x_ in _blocks(grad, dropped, grad_x):
            _where_positive(grad_, dropped_, grad_x_).mul_(ctx.scale)
        return grad_x, None


class _DroppedAttention(torch.autograd.Function):
    """Processes a few heads at a time, so that their scores stay in the processor's cache. q is already scaled."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
        masks = Masks(p)
        weights = q.new_empty(len(q), q.shape[1], k.shape[1])
        dropped, attended = torch.empty_like(weights), q.new_empty(len(q), q.shape[1], v.shape[2])
        mask = q.new_zeros(()) if mask is None else mask
        for q_, k_, v_, weights_, dropped_, attended_ in _few_heads(weights, q, k, v, weights, dropped, attended):
            torch.baddbmm(mask, q_, k_.mT, out=weights_)
            torch.softmax(weights_, dim=-1, out=weights_)
            torch.bmm(masks.drop(weights_, out=dropped_), v_, out=attended_)
        ctx.save_for_backward(q, k, v, weights, dropped)
        ctx.scale = masks.scale
        return attended.mul_(masks.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        saved, grad = ctx.saved_tensors, grad * ctx.scale
        q, _, _, weights, _ = saved
        grads = [torch.empty_like(x) for x in saved[:3]]
        for q_, k_, v_, weights_, dropped_, grad_, grad_q, grad_k, grad_v in _few_heads(weights, *saved, grad, *grads):
            torch.bmm(dropped_.mT, grad_, out=grad_v)
            scores = torch.bmm(grad_, v_.mT)
            _where_positive(
                scores, dropped_, scores
            )  # a weight that is 0 before dropout gets no gradient from the softmax either
            torch.ops.aten._softmax_backward_data.out(scores, weights_, -1, q.dtype, grad_input=scores)
            torch.bmm(scores, k_, out=grad_q)
            torch.bmm(scores.mT, q_, out=grad_k)
        return *grads, None, None


def _few_heads(weights: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, (B heads) x ..., split into groups of heads with BLOCK bytes of weights, heads x L x S."""
    heads = max(1, BLOCK // weights[0].nbytes)
    return zip(*(tensor.split(heads) for tensor in tensors), strict=True)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, flat, split into blocks of BLOCK bytes of the first. Outputs must be contiguous."""
    return zip(*(tensor.reshape(-1).split(BLOCK // tensors[0].element_size()) for tensor in tensors), strict=True)


def _where_positive(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """x where y > 0, else 0: the backward of ReLU."""
    return torch.ops.aten.threshold_backward.grad_input(x, y, 0, grad_input=out)
