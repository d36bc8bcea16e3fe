"""Checkpoints: the format, atomic writing, reading without running code from the file, and which one to resume."""

import io
import logging
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from models.backbones.pretrained import misfits
from utils.errors import UserError
from utils.files import write_atomically
from utils.limits import EPOCHS

LAST, PREVIOUS, BEST, ALL = "ckpt.pth.tar", "ckpt_previous.pth.tar", "ckpt_best.pth.tar", "ckpt*.pth.tar"
PREFIX = "module."  # published checkpoints were saved from inside DistributedDataParallel

# Published checkpoints also hold EasyDicts, which become plain mappings, and one numpy.float64.
_scalar = np.float64(0).__reduce__()[0]
SAFE_GLOBALS = [
    (OrderedDict, "easydict.EasyDict"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


log = logging.getLogger("uniad")


class Position(BaseModel, strict=True):
    """How far a checkpoint's run is in its epoch."""

    images: int = Field(ge=0)
    steps: int = Field(ge=0)
    loss_sums: list[float]


class State(BaseModel, strict=True):
    """What a checkpoint may say of its run, beside weights, configuration, optimiser, schedule and random states."""

    epoch: int = Field(0, ge=0, le=EPOCHS)
    best_metric: float = 0.0
    history: list[dict[str, float]] = []
    running_epoch: Position | None = None


def save_checkpoint(path: str | Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write `content` (tensors, numbers, texts, lists and dicts) to a temporary file, then rename it to `path`.

    With `previous`, an intact file at `path` is renamed to `previous` first: at any moment one of the two is intact. Raises
    UserError naming the path if writing fails; then nothing is renamed.
    """
    buffer = io.BytesIO()  # in memory first: torch.save replaces a full disk's error by its own
    torch.save(content, buffer)

    def write(file: BinaryIO) -> None:
        file.write(buffer.getbuffer())
        if previous and is_sound(path):
            file.flush()
            os.fsync(file.fileno())  # the new file is complete before the old one is renamed
            os.replace(path, previous)

    write_atomically(path, write)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of the published implementation, on the CPU; never runs code from the file.

    Raises UserError naming the file if it is missing, truncated, changed (but for torch's legacy format, which has no checksums)
    or no checkpoint.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such checkpoint; train first, or name another")
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"  # as torch itself decides
        if is_zip and not is_sound(path):  # torch verifies neither checksums nor sizes
            raise zipfile.BadZipFile
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")  # torch's warnings about foreign files; the errors below say what matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        if refused := re.search(r"GLOBAL ([\w.]*\w)", str(error)):
            raise UserError(f"{path}: refused, it asks for {refused[1]}, which no checkpoint of this project needs") from None
        raise UserError(f"{path}: damaged or not a checkpoint") from None
    state_dict = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not all(isinstance(name, str) and is_whole(t) for name, t in state_dict.items()):
        raise UserError(f"{path}: not a checkpoint of this project, it has no state_dict of tensors")
    try:
        State.model_validate({name: content[name] for name in State.model_fields if name in content})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path}: not a checkpoint of this project, its {where} is of another kind") from None
    return content


def is_whole(tensor: Any) -> bool:
    """Whether it is a plain tensor that holds all its numbers: one of stride 0 can claim any size."""
    is_plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
    return is_plain and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def is_sound(path: str | Path) -> bool:
    """Whether `path` is a zip file of which every part matches its checksum, none is packed, and no two share bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            if is_packed or sum(part.file_size for part in parts) > os.path.getsize(path):
                return False
            return archive.testzip() is None
    except Exception:  # damaged bytes make zipfile raise many kinds of errors
        return False


def find_start(saver: dict[str, Any], overwrite: bool) -> Path | None:
    """The checkpoint to resume, None for a new run. UserError if that would overwrite checkpoints without --overwrite."""
    folder = Path(saver["save_dir"])
    if overwrite:
        if saver["resume_model"]:
            raise UserError("--overwrite starts over and saver.resume_model goes on: choose one of them")
        return None
    if saver["auto_resume"] and (newest := newest_whole(folder)):
        return newest
    if saver["resume_model"]:
        return Path(saver["resume_model"])
    if any(folder.glob(ALL)):
        raise UserError(
            f"{folder} holds checkpoints of an earlier run: go on from it with saver.auto_resume=True, "
            "start over with --overwrite, or choose another saver.save_dir"
        )
    return None


def newest_whole(folder: Path) -> Path | None:
    """The newer readable one of the last two checkpoints; None if neither exists, UserError if none can be read."""
    errors = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            load_checkpoint(path)
        except UserError as error:
            errors.append(str(error))
            continue
        if path.name == PREVIOUS:  # no error means that the run was killed between two renames
            log.warning("%s: going on from %s", errors[0] if errors else f"{folder / LAST}: it is not there", path.name)
        return path
    if errors:
        raise UserError(
            f"{'; '.join(errors)}; nothing to go on from: name another checkpoint with saver.auto_resume=False and "
            "saver.resume_model, or start over with --overwrite"
        )
    return None


def remove_checkpoints(folder: str | Path) -> None:
    """Remove an earlier run's checkpoints, so that nothing resumes them by mistake."""
    for path in Path(folder).glob(ALL):
        path.unlink()


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of a run that was killed while saving."""
    for path in Path(folder).glob(".ckpt*.tmp"):
        path.unlink()


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state_dict under the published keys."""
    return {f"{PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}


def load_network_state(network: nn.Module, state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Load weights strictly. Raises UserError naming the file `path` and the keys that differ."""
    given = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
    make_room(network, given)
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in misfits(network.state_dict(), given).items()
    ]
    if problems:
        raise UserError(f"{path}: a checkpoint of another network, keys {'; '.join(problems)}")
    network.load_state_dict(given)


def make_room(network: nn.Module, given: dict[str, Tensor]) -> None:
    """Give the buffers that a subnet calls `growing` the length of those in `given`."""
    for subnet_name, subnet in network.named_children():
        for name in getattr(subnet, "growing", ()):
            tensor, buffer = given.get(f"{subnet_name}.{name}"), getattr(subnet, name)
            if tensor is not None and tensor.shape[1:] == buffer.shape[1:] and tensor.dim() == buffer.dim():
                setattr(subnet, name, buffer.new_empty(tensor.shape))
