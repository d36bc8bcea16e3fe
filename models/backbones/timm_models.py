"""Any timm model as a backbone: the levels of a multi-scale network, or the blocks of a ViT as one grid.

timm is imported inside functions: the import takes over a second, and few configurations need it.
"""

import difflib
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones.folded import in_device_layout
from models.backbones.pretrained import cached_download, read_weights
from utils.errors import UserError


class TimmBackbone(nn.Module):
    """A timm model with the outputs of `outlayers`, counted from 1. Layers after the last one do not run.

    Layers are the levels of a multi-scale network, finest first, or the blocks of a ViT. Outputs of ViT blocks are not
    normalised and have no class or register tokens.
    """

    def __init__(self, model: nn.Module, outlayers: Sequence[int], outplanes: list[int], outstrides: list[int]) -> None:
        super().__init__()
        self.model = model
        self.outlayers = list(outlayers)
        self.outplanes, self.outstrides = outplanes, outstrides

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """{"image": Bx3xHxW} -> {"features": [BxCxhxw for each outlayer]}."""
        outputs = _layer_outputs(self.model, in_device_layout(inputs["image"]), self.outlayers)
        return {"features": [outputs[layer] for layer in self.outlayers]}


def build_timm(
    name: str,
    pretrained: bool,
    outlayers: Sequence[int],
    pretrained_model: str = "",
    input_size: Sequence[int] | None = None,
) -> TimmBackbone:
    """The timm model `name`, with or without a weights tag, giving the features of `outlayers` in that order.

    pretrained: load weights from the file `pretrained_model` if given, else from the hub's cache, else by download.
    input_size: (H, W) of the images, to which position embeddings are resampled; None: the model's own.
    Raises UserError for a name, layer or size that timm does not support and for weights that are not available.
    """
    outplanes, outstrides = timm_outputs(name, outlayers, input_size)
    if pretrained:
        model = _create_with_weights(name, input_size, Path(pretrained_model) if pretrained_model else _hub_file(name))
    else:
        model = _create(name, input_size)
    return TimmBackbone(model, outlayers, outplanes, outstrides)


def timm_outputs(name: str, outlayers: Sequence[int], input_size: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Channels and strides of the timm model `name` at `outlayers`, in that order.

    They are measured by a run on the meta device, which computes shapes only: what timm declares is not exact for all models
    and sizes. Raises UserError as `build_timm` does.
    """
    height, width = input_size or _pretrained_cfg(name).input_size[-2:]
    try:
        with torch.device("meta"), torch.no_grad():
            model = _create(name, input_size).eval()
            _check_layers(name, model, outlayers)
            outputs = _layer_outputs(model, torch.empty(1, 3, height, width), outlayers)
    except UserError:
        raise
    except Exception as error:  # a model can raise anything for an unsupported size
        raise UserError(f"{name} cannot be run on images of {height}x{width}: {_in_short(error)}") from error
    shapes = [outputs[layer].shape[1:] for layer in outlayers]  # (C, h, w) each
    for layer, (_, h, w) in zip(outlayers, shapes, strict=True):
        if height % h or width % w or height // h != width // w:
            raise UserError(
                f"layer {layer} of {name} makes a {h}x{w} map of a {height}x{width} image, which is not a whole stride: "
                "use another dataset.input_size or other outlayers"
            )
    return [planes for planes, _, _ in shapes], [height // h for _, h, _ in shapes]


def timm_mean_std(name: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels in 0..1 with which the weights of `name` were trained."""
    cfg = _pretrained_cfg(name)
    return list(cfg.mean), list(cfg.std)


def _pretrained_cfg(name: str) -> Any:
    """timm's description of the model and its weights. Raises UserError for an unknown name."""
    import timm

    known = timm.list_models() + timm.list_pretrained()  # names without and with a tag
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists all names"
        raise UserError(f"timm has no model '{name}': {hint}")
    return timm.models.get_pretrained_cfg(name)


def _create(name: str, input_size: Sequence[int] | None, **kwargs: Any) -> nn.Module:
    """timm's model without its classifier. A ViT is built for images of `input_size`."""
    import timm

    fixed = _pretrained_cfg(name).fixed_input_size
    size = {"img_size": tuple(input_size)} if fixed and input_size else {}
    return timm.create_model(name, num_classes=0, **size, **kwargs)


def _layer_outputs(model: nn.Module, image: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
    """image: Bx3xHxW. Returns {layer: BxCxhxw}; layers are counted from 1."""
    ascending = sorted(set(layers))
    indices = [layer - 1 for layer in ascending]
    maps = model.forward_intermediates(image, indices=indices, stop_early=True, output_fmt="NCHW", intermediates_only=True)
    return dict(zip(ascending, maps, strict=True))


def _check_layers(name: str, model: nn.Module, outlayers: Sequence[int]) -> None:
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise UserError(f"timm offers no feature maps of {name}: choose another model")
    number = len(model.feature_info)
    if not outlayers:
        raise UserError(f"outlayers of {name} is empty: name at least one of its layers 1 to {number}")
    for layer in outlayers:
        if not 1 <= layer <= number:
            raise UserError(f"{name} has no layer {layer} (outlayers {list(outlayers)}): its layers are 1 to {number}")


def _hub_file(name: str) -> Path:
    """The weights file in the Hugging Face cache, else in torch hub's cache, else downloaded."""
    import huggingface_hub

    cfg = _pretrained_cfg(name)
    if cfg.hf_hub_id:
        file = cfg.hf_hub_filename or "model.safetensors"
        if isinstance(cached := huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, file), str):
            return Path(cached)
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")  # may name a mirror
        url, file_name = f"{hub}/{cfg.hf_hub_id}/resolve/main/{file}", f"{cfg.hf_hub_id}-{file}".replace("/", "-")
        return cached_download(name, url, file_name, offline=huggingface_hub.constants.HF_HUB_OFFLINE)
    if cfg.url:
        return cached_download(name, cfg.url)
    raise UserError(f"timm has no weights of {name}: name a file in pretrained_model, or set pretrained to False")


def _create_with_weights(name: str, input_size: Sequence[int] | None, path: Path) -> nn.Module:
    """timm's model with the weights in the file. timm converts other projects' names and resamples position embeddings.

    All keys must match, except the classifier's, which are ignored, and for the few models whose own files timm does not check.
    Raises UserError, which names the file, if they do not fit.
    """
    with torch.device("meta"):
        wanted = _create(name, input_size).state_dict()
    classifier = _pretrained_cfg(name).classifier or ()
    roots = tuple(f"{part.split('.')[0]}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    weights = {key: tensor for key, tensor in read_weights(path).items() if key in wanted or not key.startswith(roots)}
    # no classifier: timm checks all keys; no other source: timm cannot fall back on one if the file has no usable weights
    overlay = {"state_dict": weights, "classifier": None, "hf_hub_id": None, "url": None}
    try:
        model = _create(name, input_size, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's conversions can raise anything on a file of another kind
        raise UserError(
            f"{path} does not hold the weights of {name} ({_in_short(error)}): give the right file in pretrained_model"
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    return model


def _in_short(error: Exception) -> str:
    """The message in one line of at most 300 characters."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
