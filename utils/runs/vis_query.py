"""Pictures of the learned queries in UniAD's decoder layers, drawn by a vis decoder."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from models.necks import Standardise
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.naming import ANY_CLASS, matching_classes
from utils.process.checkpoint import load_checkpoint
from utils.process.distributed import Process
from utils.report.drawing import save_picture
from utils.runs.vis_decoder import add_label, feature_shape, load_decoder, to_picture

QUERIES = re.compile(r"(.*)transformer\.decoder\.layers\.(\d+)\.learned_embed\.weight")

log = logging.getLogger("uniad")


@torch.no_grad()
def draw_queries(config: EasyDict, process: Process, class_name: str) -> None:
    """Draw saver.save_dir/<class>/queries.jpg: the queries of every decoder layer, then three baselines in their place.

    The baselines are random numbers of N(0, 1), like the queries before training, ones and zeros.
    """
    layers, as_features = read_queries(config)
    *_, decoder = load_decoder(config, process).children()
    noise = torch.randn(layers[0].shape, generator=torch.Generator().manual_seed(config.random_seed or 0))
    tokens = torch.stack([*layers, noise, torch.ones_like(noise), torch.zeros_like(noise)])  # (N + 3) x hw x D
    labels = [*(f"layer {i + 1}" for i in range(len(layers))), "random", "ones", "zeros"]
    images = decoder({"feature_align": as_features(tokens).to(process.device)})["image_rec"]  # (N + 3) x 3 x H x W
    pictures = [to_picture(image, config.data.pixel_mean, config.data.pixel_std) for image in images]
    if config.vis_query.with_text:
        pictures = list(map(add_label, pictures, labels))
    name = Path(class_name) / "queries.jpg"
    save_picture(config.saver.save_dir, name, np.hstack(pictures))
    log.info("from left to right %s: %s", ", ".join(labels), Path(config.saver.save_dir) / name)


def read_queries(config: EasyDict) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """The queries, hw x D, of each decoder layer in vis_query.model_path, and UniAD's way from N x hw x D to N x C x h x w.

    Features are in the backbone's units. UserError for no UniAD checkpoint, and for sizes other than the configuration's.
    """
    path = config.vis_query.model_path
    state_dict = load_checkpoint(path)["state_dict"]
    found = sorted((int(match[2]), match[1], name) for name in state_dict if (match := QUERIES.fullmatch(name)))
    prefix = found[0][1] if found else ""  # e.g. "module.reconstruction."
    needed = [f"{prefix}output_proj.weight", f"{prefix}output_proj.bias"]
    for name in needed if found else ["transformer.decoder.layers.0.learned_embed.weight"]:
        if name not in state_dict:
            raise UserError(f"{path}: not a checkpoint of UniAD, it has no {name}")
    weight, bias = (state_dict[name].float() for name in needed)  # C x D, C
    layers = [state_dict[name].float() for _, _, name in found]
    channels, h, w = feature_shape(config)
    num_tokens, hidden_dim = layers[0].shape
    for what, actual, expected in (
        ("decoder layers (vis_query.num_decoder_layers)", len(layers), config.vis_query.num_decoder_layers),
        ("hidden dimensions (vis_query.hidden_dim)", hidden_dim, config.vis_query.hidden_dim),
        (f"queries a layer (one for each place of the {h}x{w} grid of data.input_size)", num_tokens, h * w),
        ("channels of a feature (net's outlayers)", weight.shape[0], channels),
    ):
        if expected is not None and actual != expected:
            raise UserError(f"{path}: a checkpoint of another model, its number of {what} is {actual}, not {expected}")
    standardise = read_standardise(state_dict, channels)

    def as_features(tokens: Tensor) -> Tensor:
        features = F.linear(tokens, weight, bias).transpose(1, 2).unflatten(2, (h, w))
        return standardise.undo(features) if standardise else features

    return layers, as_features


def read_standardise(state_dict: dict[str, Tensor], channels: int) -> Standardise | None:
    """The neck's statistics, with which UniAD's features are standardised; None if they are not."""
    means = [name for name in state_dict if name.endswith(".standardise.mean")]
    if not means:
        return None
    prefix = means[0].removesuffix("mean")  # the neck comes before a discriminator, which may have its own
    standardise = Standardise(channels)
    standardise.load_state_dict({name: state_dict[f"{prefix}{name}"] for name in standardise.state_dict()})
    return standardise


def query_classes(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The classes that have a vis decoder at saver.load_path."""
    load_path = load_config(path, overrides, ("saver",), class_name=ANY_CLASS).saver.load_path
    if ANY_CLASS not in load_path:
        raise UserError(f"{path}: saver.load_path has no {{class_name}} in it: name the one class with --class_name")
    if not (classes := matching_classes(load_path)):
        raise UserError(f"there is no vis decoder {load_path}; tools/train_vis_decoder.py trains one")
    return classes
