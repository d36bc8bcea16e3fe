"""What follows from a configuration as a whole: checks across sections, and the derived values of `net`."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from models.backbones.specs import layer_outputs
from models.backbones.timm_models import timm_mean_std, timm_outputs
from models.losses import LOSSES
from utils import optim
from utils.config.schema import MAKES_MAPS, MEMORY, RECONSTRUCTIONS, SUBNET_KINDS
from utils.config.validation import nearest
from utils.errors import UserError
from utils.limits import PIXELS

log = logging.getLogger("uniad")

# What `derive_net` adds to the kwargs of subnets.
DERIVED = ("inplanes", "instrides", "outplanes", "feature_size", "input_size")

# What may follow each other in `net`.
CHAINS = (
    *(["backbone", "MFCN", kind] for kind in RECONSTRUCTIONS if kind != "Dinomaly"),
    ["backbone", "MFCN", "UniAD", "Discriminator"],
    ["backbone", "Dinomaly"],
)


def check_data(config: dict[str, Any]) -> None:
    """What a data set needs depends on its type, and may stand in dataset or in its train and test parts."""
    if "dataset" not in config:
        return
    for split in ("train", "test"):
        merged = {**config["dataset"], **config["dataset"][split]}
        if split == "test" and merged["type"] == "custom" and not merged["meta_file"]:
            continue  # training goes without
        needed = {"custom": ("meta_file", "image_reader"), "cifar10": ("root_dir", "normals")}[merged["type"]]
        for name in needed:
            if not merged.get(name):
                raise UserError(f"dataset.{split}.{name} is missing: a data set of type {merged['type']} needs it")
        for name in ("class_name", "separate", "roi", "tiles"):
            if merged.get(name) and merged["type"] != "custom":
                raise UserError(f"dataset.{name} is for data sets of type custom, not {merged['type']}")
    if config["dataset"]["tiles"]:
        check_tiles(config)


def check_tiles(config: dict[str, Any]) -> None:
    """What overlaps must move on, and what is written for each image has no place for its tiles."""
    data = config["dataset"]
    size, overlap = data["tiles"]["size"], data["tiles"]["overlap"]
    if overlap >= min(size):
        raise UserError(f"dataset.tiles.overlap {overlap} must be less than the sides of a tile, {size}")
    for merged in ({**data, **data[split]} for split in ("train", "test")):
        if merged.get("crop"):
            raise UserError("dataset.crop would cut the edges of each tile: leave it out, or dataset.tiles")
        if merged["image_reader"]["kwargs"]["max_pixels"] != PIXELS:
            raise UserError("dataset.image_reader.kwargs.max_pixels would halve photographs before they are cut: leave it out")
    for subnet in config["net"]:
        if subnet["kwargs"].get("save_recon"):
            raise UserError(f"net.{subnet['name']}.kwargs.save_recon is for whole images, not for dataset.tiles: leave one out")


def check_training(config: dict[str, Any]) -> None:
    """Try optimiser and schedule on one number, and hold losses and key metric against what the configuration computes."""
    types = {subnet["type"] for subnet in config["net"]}
    if MEMORY in types:
        check_memory(config)
    elif trainer := config.get("trainer"):
        check_complete(trainer)
        optimizer = try_build(optim, trainer["optimizer"], "trainer.optimizer", [torch.zeros(1, requires_grad=True)])
        schedule = trainer["lr_scheduler"]
        length = {} if schedule["type"] == "StepLR" else {"total_steps": 10**9}
        if length and "total_steps" in schedule["kwargs"]:
            raise UserError("trainer.lr_scheduler.kwargs.total_steps follows from max_epoch and the data: leave it out")
        max_lr = schedule["kwargs"].get("max_lr", 1)
        if isinstance(max_lr, bool) or not isinstance(max_lr, int | float) or not 0 < max_lr < math.inf:
            raise UserError("trainer.lr_scheduler.kwargs.max_lr must be one number above 0; net[].lr_scale multiplies it")
        try_build(optim, schedule, "trainer.lr_scheduler", optimizer, **length)
        step_size = schedule["kwargs"].get("step_size", 1)
        if not isinstance(step_size, int | float) or not step_size >= 1:
            raise UserError(f"trainer.lr_scheduler.kwargs.step_size must be at least 1, not {step_size!r}")
    if config["reproduce"] and config["random_seed"] is None:
        raise UserError("reproduce: True needs a random_seed")
    check_discriminator(config, types)
    if "criterion" in config:
        check_losses(config, types)
    if evaluator := config.get("evaluator"):
        if not any(SUBNET_KINDS[name] in MAKES_MAPS for name in types):
            makers = " or ".join(f"models.reconstructions.{kind}" for kind in MAKES_MAPS)
            raise UserError(f"evaluator needs a subnet of type {makers}, which makes the anomaly map")
        metrics = [f"{score['name']}_{kind}" for kind, scores in evaluator["metrics"].items() for score in scores]
        check_scores(evaluator["metrics"], (evaluator["map"] or {}).get("size") or seen_size(config.get("dataset", {})))
        if not any(evaluator["key_metric"].endswith(f"_{metric}") for metric in metrics):
            choices = ", ".join(f"mean_{metric}" for metric in metrics)
            raise UserError(f"evaluator.key_metric '{evaluator['key_metric']}' is not computed: use one of {choices}")


def check_complete(trainer: dict[str, Any]) -> None:
    """What a network needs that is trained, and a memory does not."""
    if not trainer["max_epoch"] and not trainer["max_step"]:
        raise UserError("trainer.max_epoch is missing: epochs in all; or give trainer.max_step")
    for name in ("lr_scheduler", "optimizer"):
        if not trainer[name]:
            raise UserError(f"trainer.{name} is missing")


def check_memory(config: dict[str, Any]) -> None:
    """A memory sees each training image once, as it is, and has units of its own."""
    data = config.get("dataset")
    merged = {**data, **data["train"]} if data else {}
    for name in ("rebalance", "hflip", "vflip", "rotate", "colorjitter"):
        if merged.get(name):
            raise UserError(f"dataset.{name}: {MEMORY} sees each training image once, as it is; turn it off")
    for subnet in config["net"]:
        if subnet["kwargs"].get("standardise"):
            raise UserError(f"net.{subnet['name']}.kwargs.standardise: {MEMORY} standardises by itself; turn it off")


def check_losses(config: dict[str, Any], types: set[str]) -> None:
    """Each loss has its subnet, and each subnet that learns its loss."""
    for criterion in config["criterion"]:
        if types.isdisjoint(needed := LOSSES[criterion["type"]].subnets):
            raise UserError(f"criterion '{criterion['name']}': {criterion['type']} needs a subnet of type {' or '.join(needed)}")
    given = {criterion["type"] for criterion in config["criterion"]}
    for subnet in config["net"]:
        frozen = subnet["frozen"] or subnet["name"] in config["frozen_layers"]
        needed = next((name for name, loss in LOSSES.items() if subnet["type"] in loss.subnets), None)
        if needed and not frozen and needed not in given:
            raise UserError(f"{subnet['type']} needs a criterion of type {needed}")


def check_discriminator(config: dict[str, Any], types: set[str]) -> None:
    """Pseudo-anomalies and the subnet that learns from them go together, and need standardised features."""
    has_subnet = "models.discriminators.Discriminator" in types
    data = config.get("dataset")
    has_data = bool(data and {**data, **data["train"]}["pseudo_anomalies"])
    if has_data and not has_subnet:
        raise UserError("dataset.pseudo_anomalies are for a subnet of type models.discriminators.Discriminator, which net lacks")
    if not has_subnet:
        return
    if data and not has_data:
        raise UserError("models.discriminators.Discriminator learns from pseudo-anomalies: set dataset.pseudo_anomalies to True")
    necks = [subnet for subnet in config["net"] if subnet["type"] == "models.necks.MFCN"]
    if not all(neck["kwargs"]["standardise"] for neck in necks):
        raise UserError("models.discriminators.Discriminator needs standardised features: set standardise of the MFCN to True")


def seen_size(data: dict[str, Any]) -> list[int] | None:
    """The size of the images that the network sees."""
    return data.get("crop") or data.get("input_size")


def check_scores(metrics: dict[str, list], map_size: Sequence[int] | None) -> None:
    """Each score once a metric, and an averaging window for max only, that fits into the map."""
    for kind, scores in metrics.items():
        where = f"evaluator.metrics.{kind}"
        if len({score["name"] for score in scores}) < len(scores):
            raise UserError(f"{where} names a score twice")
        for score in scores:
            window = score.get("kwargs", {}).get("avgpool_size")
            if window and score["name"] != "max":
                raise UserError(f"{where}: avgpool_size is for the score max, not {score['name']}")
            if window and map_size and any(w > side for w, side in zip(window, map_size, strict=True)):
                raise UserError(f"{where}: avgpool_size {window} is larger than the anomaly map, {list(map_size)}")
            if score.get("kwargs", {}).get("share") is not None and score["name"] != "top":
                raise UserError(f"{where}: share is for the score top, not {score['name']}")


def try_build(module: Any, section: dict[str, Any], where: str, *args: Any, **more: Any) -> Any:
    try:
        return getattr(module, section["type"])(*args, **section["kwargs"], **more)
    except (TypeError, ValueError, LookupError, ZeroDivisionError) as error:
        message = str(next(iter(error.args), error))  # a KeyError's own text is a quotation
        raise UserError(f"{where}.kwargs do not suit {section['type']}: {message.splitlines()[0]}") from None


def derive_net(config: dict[str, Any]) -> None:
    """Fill in what follows from `outlayers`, `outstrides` and `input_size`, in place: planes, strides, feature size, frozen."""
    names = [subnet["name"] for subnet in config["net"]]
    for name in config["frozen_layers"]:
        if name not in names:
            raise UserError(f"frozen_layers: '{name}' is not a subnet{nearest(name, names)}")
    kinds = [SUBNET_KINDS[subnet["type"]] for subnet in config["net"]]
    chain = ["backbone" if kind == "timm" else kind for kind in kinds]
    if len(set(names)) < len(names) or chain not in CHAINS:
        raise UserError(
            "net must be a backbone, models.necks.MFCN and one of models.reconstructions, each with a name of its own, "
            "and after models.reconstructions.UniAD optionally models.discriminators.Discriminator; "
            "models.reconstructions.Dinomaly follows the backbone, without a neck"
        )
    data = config.get("dataset") or config.get("data") or {}
    seen = seen_size(data)
    if any(part > side for part, side in zip(data.get("crop") or (), data.get("input_size") or (), strict=False)):
        raise UserError(f"dataset.crop {data['crop']} is larger than dataset.input_size {data['input_size']}")
    planes: list[int] = []
    strides: list[int] = []
    features: dict[str, list[int]] = {}
    fills = any(subnet["type"] == MEMORY for subnet in config["net"])
    for before, subnet in zip([None, *names], config["net"], strict=False):
        where, kind, kwargs = f"net.{subnet['name']}", SUBNET_KINDS[subnet["type"]], subnet["kwargs"]
        if subnet["prev"] not in (None, before):
            raise UserError(f"{where}.prev '{subnet['prev']}' must be '{before}', the subnet before it")
        subnet["frozen"] = subnet["frozen"] or subnet["name"] in config["frozen_layers"] or fills
        if subnet["frozen"] and (kind == "Discriminator" or kwargs.get("standardise")):
            raise UserError(f"{where} cannot be frozen: what features are standardised by is found in training")
        if kind in ("backbone", "timm"):
            planes, strides = backbone_outputs(subnet, data)
            features = {"inplanes": planes, "instrides": strides}
            check_divisible(data, max(strides), f"{where}.kwargs.outlayers")
            continue
        if kind == "Discriminator":
            kwargs.update(features)
            check_divisible(data, kwargs["outstride"], f"{where}.kwargs.outstride")
            continue
        kwargs.update(inplanes=planes, instrides=strides)
        if kind == "MFCN":
            if len(kwargs["outstrides"]) != 1:
                raise UserError(f"{where}.kwargs.outstrides must hold one stride, not {kwargs['outstrides']}")
            planes, strides = [sum(planes)], list(kwargs["outstrides"])
            kwargs["outplanes"] = planes
            check_divisible(data, strides[0], f"{where}.kwargs.outstrides")
        if kind in ("UniAD", "Dinomaly") and seen:
            kwargs["feature_size"] = [side // strides[0] for side in seen]


def backbone_outputs(subnet: dict[str, Any], data: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Channels and strides at the backbone's outlayers. A timm model gets the size of the images among its kwargs, in place."""
    kwargs = subnet["kwargs"]
    if SUBNET_KINDS[subnet["type"]] != "timm":
        return layer_outputs(subnet["type"].rsplit(".")[-1], kwargs["outlayers"])
    kwargs["input_size"] = seen_size(data)
    outputs = timm_outputs(kwargs["name"], kwargs["outlayers"], kwargs["input_size"])
    own = timm_mean_std(kwargs["name"])
    if kwargs["pretrained"] and data and not np.allclose(own, [data["pixel_mean"], data["pixel_std"]], atol=0.001):
        log.warning("%s was trained with pixel_mean %s, pixel_std %s: the configuration has others", kwargs["name"], *own)
    return outputs


def check_divisible(data: dict[str, Any], stride: int, cause: str) -> None:
    seen, key = seen_size(data), "crop" if data.get("crop") else "input_size"
    if any(side % stride for side in seen or ()):
        raise UserError(f"dataset.{key} {seen} must be divisible by {stride}, the stride given by {cause}")
