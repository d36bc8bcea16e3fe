"""The number format that the network computes in; loss, anomaly map and weights are float32 always."""

from contextlib import AbstractContextManager

import torch


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """name: float32, bfloat16, or auto: bfloat16 where the device multiplies it faster than float32."""
    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16 products; without them a CPU emulates it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version
    return bool(capabilities.get("amx_bf16", False))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Where the network is run; float32 is left alone."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
