"""Pictures of what UniAD's decoder layers learned to ask for: their queries, drawn by a vis decoder."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
from utils.runs.vis_decoder import feature_shape, load_decoder, to_picture, with_label

QUERIES = re.compile(r"(.*)transformer\.decoder\.layers\.(\d+)\.learned_embed\.weight")

log = logging.getLogger("uniad")


@dataclass
class LearnedQueries:
    """What a UniAD checkpoint holds of its queries and of the way back from tokens to features."""

    layers: Tensor  # N x hw x D, the queries of each decoder layer
    weight: Tensor  # C x D, of output_proj
    bias: Tensor  # C

    def as_features(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """Nx hw x D -> NxCxhxw, as UniAD makes features of its decoder's output."""
        return F.linear(tokens, self.weight, self.bias).transpose(1, 2).unflatten(2, (h, w))


@torch.no_grad()
def draw_queries(config: EasyDict, process: Process, class_name: str) -> None:
    """Draw saver.save_dir/<class>/queries.jpg: a strip of every decoder layer's queries, then three baselines in their place.

    The baselines are random numbers of N(0, 1), which is what the queries were before training, ones and zeros.
    """
    queries = read_queries(config)
    _, h, w = feature_shape(config)
    *_, decoder = load_decoder(config, process).children()
    like = queries.layers[0]  # hw x D
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(config.random_seed or 0))
    tokens = torch.stack([*queries.layers, noise, torch.ones_like(like), torch.zeros_like(like)])  # (N + 3) x hw x D
    labels = [*(f"layer {i + 1}" for i in range(len(queries.layers))), "random", "ones", "zeros"]
    features = queries.as_features(tokens, h, w).to(process.device)
    images = decoder({"feature_align": features})["image_rec"]  # (N + 3) x 3 x H x W
    pictures = [to_picture(image, config.data.pixel_mean, config.data.pixel_std) for image in images]
    if config.vis_query.with_text:
        pictures = [with_label(picture, label) for picture, label in zip(pictures, labels, strict=True)]
    path = Path(config.saver.save_dir) / class_name / "queries.jpg"
    save_picture(path, np.hstack(pictures))
    log.info("from left to right %s: %s", ", ".join(labels), path)


def read_queries(config: EasyDict) -> LearnedQueries:
    """The queries of vis_query.model_path.

    Raises UserError where it is no UniAD checkpoint, or not one of the configured sizes and of features that `net` draws.
    """
    path = config.vis_query.model_path
    state_dict = load_checkpoint(path)["state_dict"]
    found = sorted((int(match[2]), match[1], name) for name in state_dict if (match := QUERIES.fullmatch(name)))
    if not found:
        raise UserError(f"{path}: not a checkpoint of UniAD, it has no transformer.decoder.layers.0.learned_embed.weight")
    prefix = found[0][1]  # e.g. "module.reconstruction."
    try:
        weight, bias = (state_dict[f"{prefix}output_proj.{name}"].float() for name in ("weight", "bias"))
    except KeyError as error:
        raise UserError(f"{path}: not a checkpoint of UniAD, it has no {error.args[0]}") from None
    layers = [state_dict[name].float() for _, _, name in found]
    channels, h, w = feature_shape(config)
    num_tokens, hidden_dim = layers[0].shape
    for what, is_in, wanted in (
        ("decoder layers (vis_query.num_decoder_layers)", len(layers), config.vis_query.num_decoder_layers),
        ("hidden dimensions (vis_query.hidden_dim)", hidden_dim, config.vis_query.hidden_dim),
        (f"queries a layer (one for each place of the {h}x{w} grid of data.input_size)", num_tokens, h * w),
        ("channels of a feature (net's outlayers)", weight.shape[0], channels),
    ):
        if wanted is not None and is_in != wanted:
            raise UserError(f"{path}: a checkpoint of another model, its number of {what} is {is_in}, not {wanted}")
    return LearnedQueries(torch.stack(layers), *in_backbone_units(weight, bias, state_dict))


def in_backbone_units(weight: Tensor, bias: Tensor, state_dict: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The projection CxD, C to features as vis decoders know them: without the neck's standardising."""
    means = [name for name in state_dict if name.endswith(".standardise.mean")]
    if not means:
        return weight, bias
    prefix = means[0].removesuffix("mean")  # the neck's stands before a discriminator's
    standardise = Standardise(len(bias))
    standardise.load_state_dict({name: state_dict[f"{prefix}{name}"] for name in standardise.state_dict()})
    return weight * standardise.deviation[:, None], bias * standardise.deviation + standardise.mean


def query_classes(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The classes that have a vis decoder at saver.load_path."""
    load_path = load_config(path, overrides, ("saver",), class_name=ANY_CLASS).saver.load_path
    if ANY_CLASS not in load_path:
        raise UserError(f"{path}: saver.load_path has no {{class_name}} in it: name the one class with --class_name")
    if not (classes := matching_classes(load_path)):
        raise UserError(f"there is no vis decoder {load_path}; tools/train_vis_decoder.py trains one")
    return classes
