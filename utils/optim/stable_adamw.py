"""AdamW that holds back a tensor's update where its gradients outgrow their second moment."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose update of a tensor is held back where its gradients outgrow what the second moment expects.

    Wortsman et al., NeurIPS 2023, "Stable and low-precision training for large-scale vision-language models", section 3. The
    rate of a tensor is divided by RMS(gradient / denominator) / clip_threshold where that is above 1.

    Args:
        params: float32 parameters, or groups of them.
        amsgrad: divide by the largest second moment so far.

    Raises ValueError for a number out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        clip_threshold: float = 1.0,
    ) -> None:
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} {value} must be at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be two numbers, at least 0 and less than 1")
        if not 0 < clip_threshold < math.inf:
            raise ValueError(f"clip_threshold {clip_threshold} must be above 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "clip_threshold": clip_threshold,
            },
        )

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            together: dict[Any, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")
                    state.update({"step": 0, **{name: torch.zeros_like(parameter) for name in names}})
                state["step"] += 1
                # a GPU is fastest with all tensors at once, a CPU with one that its cache may hold
                together[(parameter.device, state["step"]) if parameter.is_cuda else parameter].append(parameter)
            for parameters in together.values():
                self.update(parameters, **group)

    def update(
        self,
        parameters: list[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        amsgrad: bool,
        clip_threshold: float,
        **_: Any,
    ) -> None:
        """Update parameters of one device that have made the same number of steps."""
        gradients, states = [p.grad for p in parameters], [self.state[p] for p in parameters]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        step, (beta1, beta2) = states[0]["step"], betas

        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        if amsgrad:
            largest = [s["max_exp_avg_sq"] for s in states]
            torch._foreach_maximum_(largest, squares)
            squares = largest
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, math.sqrt(1 - beta2**step))
        torch._foreach_add_(denominators, eps)

        norms = torch._foreach_norm(torch._foreach_div(gradients, denominators))
        torch._foreach_div_(norms, [clip_threshold * math.sqrt(p.numel()) for p in parameters])  # the RMS over the threshold
        torch._foreach_clamp_min_(norms, 1.0)
        torch._foreach_mul_(denominators, norms)
        torch._foreach_addcdiv_(parameters, means, denominators, -lr / (1 - beta1**step))
