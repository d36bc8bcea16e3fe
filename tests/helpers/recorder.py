"""A stand-in for a CUDA graph on a CPU: the operations of a function are noted, and done again without it, on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments and results, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict[str, Any], Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """A number of Python that an operation took is the same as in the recording; only tensors can be others."""
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def record(run: Callable[[], Tensor], recorders: list[Recorder]) -> tuple[Callable[[], None], Tensor]:
    """In place of utils.training.capture.record_graph; `recorders` gets what has recorded."""
    run()  # warm-up
    with Recorder() as recorder:
        result = run()
    recorders.append(recorder)
    return recorder.replay, result
