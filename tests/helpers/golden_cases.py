"""Outputs of the published implementation, and the recipe that makes the weights and inputs they belong to."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GOLDEN_DIR = Path(__file__).resolve().parents[1] / "golden"


def golden_arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN_DIR / file) as archive:
        return {name: archive[name] for name in archive.files}


CASES: dict[str, Any] = json.loads((GOLDEN_DIR / "golden.json").read_text())
GOLDEN = golden_arrays("golden.npz")
DINOMALY_CASES: dict[str, Any] = json.loads((GOLDEN_DIR / "dinomaly.json").read_text())["cases"]
DINOMALY_KEYS: dict[str, list[int]] = json.loads((GOLDEN_DIR / "dinomaly.json").read_text())["keys_small"]
DINOMALY = golden_arrays("dinomaly.npz")


def golden_input(seed: int, shape: list[int]) -> torch.Tensor:
    """The float32 tensor of `shape` that a golden case calls by its `seed`."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def golden_tokens(case: dict[str, Any], seed: int) -> dict[str, list[torch.Tensor]]:
    """A ViT's layers in a case of Dinomaly, as a backbone gives them: `features` BxDxhxw and `prefix` BxPxD of each."""
    rng, prefix = np.random.default_rng(seed), 1 + case["reg"]
    shape = (case["B"], prefix + case["side"] ** 2, case["dim"])
    base = rng.standard_normal(shape).astype(np.float32)
    drawn = [(base + 0.5 * rng.standard_normal(shape)).astype(np.float32) for _ in range(case["L"])]
    layers = [torch.from_numpy(tokens) for tokens in drawn]
    grids = [tokens[:, prefix:].transpose(1, 2).unflatten(2, (case["side"], case["side"])) for tokens in layers]
    return {"features": [grid.contiguous() for grid in grids], "prefix": [tokens[:, :prefix] for tokens in layers]}


def golden_weights(module: nn.Module) -> nn.Module:
    """Fill every parameter and buffer in the module's state_dict from its own name; return the module."""
    module.load_state_dict({name: golden_value(name, tensor) for name, tensor in module.state_dict().items()})
    return module


def golden_value(name: str, like: torch.Tensor) -> torch.Tensor:
    """The value that the parameter or buffer `name` has in every golden case, in the shape of `like`."""
    shape = tuple(like.shape)
    if not like.is_floating_point():
        return torch.zeros_like(like)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return torch.from_numpy((0.5 + rng.random(shape)).astype(np.float32))
    values = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        values = values / np.float32(np.sqrt(np.prod(shape[1:])))
    elif _is_norm_weight(name):
        values = 1 + np.float32(0.1) * values
    else:
        values = np.float32(0.1) * values
    return torch.from_numpy(values)


def _is_norm_weight(name: str) -> bool:
    return name.endswith("weight") and (any(part in name for part in ("norm", "_bn", ".bn")) or name.startswith("bn"))
