"""Initial weights of a reconstruction."""

import difflib
from collections.abc import Callable

from torch import nn

from utils.errors import UserError

# each method's function and its arguments with their defaults
_METHODS: dict[str, tuple[Callable, dict[str, float]]] = {
    "normal": (nn.init.normal_, {"std": 0.01}),
    "xavier_uniform": (nn.init.xavier_uniform_, {"gain": 1.0}),
    "xavier_normal": (nn.init.xavier_normal_, {"gain": 1.0}),
    "msra_uniform": (nn.init.kaiming_uniform_, {"a": 1.0}),
    "msra_normal": (nn.init.kaiming_normal_, {"a": 1.0}),
}


def initialize(module: nn.Module, method: str = "normal", **kwargs: float) -> None:
    """Initialise convolutions and linear layers in `module` by `method`, biases to 0, batch norms to weight 1 and bias 0.

    Parameters of other modules (attention's in-projection, queries, embeddings) are left unchanged.
    kwargs: `std` of normal, `gain` of xavier_*, `a` of msra_*. Raises UserError for a method or argument that does not exist.
    """
    if method not in _METHODS:
        nearest = difflib.get_close_matches(str(method), _METHODS, n=1, cutoff=0)[0]
        raise UserError(f"initializer.method: there is no {method!r}, did you mean {nearest!r}? (one of {', '.join(_METHODS)})")
    fill, defaults = _METHODS[method]
    unknown = [name for name in kwargs if name not in defaults]
    if unknown:
        raise UserError(f"initializer: {method} takes no {unknown[0]!r}, only {', '.join(defaults)}")
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fill(layer.weight, **{**defaults, **kwargs})
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
