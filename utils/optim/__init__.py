"""The optimisers and schedules that a configuration may name: torch's, and those that torch lacks."""

from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from utils.optim.stable_adamw import StableAdamW
from utils.optim.warmup_cosine import WarmupCosineLR

__all__ = ["SGD", "Adam", "AdamW", "OneCycleLR", "StableAdamW", "StepLR", "WarmupCosineLR"]
