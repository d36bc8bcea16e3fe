"""The number format that the network computes in; loss, anomaly map and weights are float32 always."""

from contextlib import AbstractContextManager

import torch


def choose_precision(name: str) -> torch.dtype:
    """name: float32, bfloat16, or auto: float32, as long as AUROC in bfloat16 differs by more than seeds do (README, Speed)."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Where the network is run; float32 is left alone."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
