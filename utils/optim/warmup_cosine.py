"""A learning rate for each step: up in a line, then down along a cosine."""

import math

import torch
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosineLR(LRScheduler):
    """A rate for each step: from 0 up to the optimiser's in a line, then down to `final_lr` along a cosine.

    Args:
        total_steps: of the whole run; `final_lr` would be that of the step after.
        warmup_steps: the last of them has the optimiser's rate, as the first after them.
        final_lr: multiplied by a parameter group's lr_scale, as the optimiser's rate is.

    Raises ValueError for a number out of range.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int = 100, final_lr: float = 0.0
    ) -> None:
        if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, int) or warmup_steps < 0:
            raise ValueError(f"warmup_steps {warmup_steps!r} must be a whole number, at least 0")
        if not 0 <= final_lr < math.inf:
            raise ValueError(f"final_lr {final_lr} must be at least 0")
        self.total_steps, self.warmup_steps, self.final_lr = total_steps, warmup_steps, final_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The rate of each parameter group at the step `last_epoch`, counted from 0."""
        step, warmup = self.last_epoch, self.warmup_steps
        if step < warmup:
            return [lr * step / max(1, warmup - 1) for lr in self.base_lrs]
        share = (1 + math.cos(math.pi * (step - warmup) / (self.total_steps - warmup))) / 2
        finals = [self.final_lr * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]
        return [final + share * (lr - final) for lr, final in zip(self.base_lrs, finals, strict=True)]
