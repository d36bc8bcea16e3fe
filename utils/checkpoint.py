"""The checkpoint format: what is in the file, how it is written whole, and how it is read without running code from it."""

import io
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import write_atomically

PREFIX = "module."  # published checkpoints were saved from inside DistributedDataParallel

# What a published checkpoint holds beside tensors and plain data: EasyDicts (as plain mappings) and one numpy.float64.
_scalar = np.float64(0).__reduce__()[0]
SAFE_GLOBALS = [
    (OrderedDict, "easydict.EasyDict"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, texts, lists and dicts) to a temporary file, then rename it to `path`.

    Raises UserError naming the path if the disk does not take it.
    """
    buffer = io.BytesIO()  # torch.save hides a full disk behind an error of its own, so it writes to memory first
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of the published implementation, on the CPU; nothing in the file is ever run.

    Raises UserError naming the file if it is missing, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")  # of foreign files: what matters is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        if refused := re.search(r"GLOBAL ([\w.]*\w)", str(error)):
            raise UserError(f"{path}: refused, it asks for {refused[1]}, which no checkpoint of this project needs") from None
        raise UserError(f"{path}: damaged or not a checkpoint") from None
    state_dict = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        raise UserError(f"{path}: not a checkpoint of this project, it has no state_dict of tensors")
    return content


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state_dict under the published keys."""
    return {f"{PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}


def load_network_state(network: nn.Module, state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Load weights strictly. Raises UserError naming the file `path` and the keys that differ."""
    given = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [
        f"{name} {tuple(given[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise UserError(f"{path}: a checkpoint of another network, keys {'; '.join(problems)}")
    network.load_state_dict(given)
