"""Exact comparison of what two runs left."""

from typing import Any

import torch


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, in nested dicts and lists of tensors and values."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where
