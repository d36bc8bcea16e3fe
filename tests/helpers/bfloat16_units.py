"""Matrix products in bfloat16 as a processor with units for them computes them, on one without, which emulates them slowly.

Factors are bfloat16, sums float32, the result is rounded to bfloat16: a float32 product of the widened factors, which every
processor does fast. Convolutions stay emulated; a feature cache spares them. So training can be judged where it is not at home:

python tests/helpers/bfloat16_units.py tools/train_val.py --config experiments/custom/config.yaml trainer.precision=bfloat16
"""

import runpy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm)


class Bfloat16Units(TorchDispatchMode):
    """Within it, matrix products of bfloat16 are computed so, forward and backward; everything else is as ever."""

    def __torch_dispatch__(
        self, func: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func._overloadpacket not in PRODUCTS or args[-1].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        result = func._overloadpacket(*(factor.float() for factor in args), **kwargs)
        return result.bfloat16() if out is None else out.copy_(result)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]  # the script and its arguments
    with Bfloat16Units():
        runpy.run_path(sys.argv[0], run_name="__main__")
