"""The network's number format; loss, anomaly map and weights are always float32."""

from contextlib import AbstractContextManager

import torch


def choose_precision(name: str) -> torch.dtype:
    """name: float32, bfloat16 or auto, which is float32: bfloat16 changes AUROC by more than the seed does (README, Speed)."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """The context to run the network in; it does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
