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
from utils.config.schema import SUBNET_KINDS
from utils.config.validation import nearest
from utils.errors import UserError

log = logging.getLogger("uniad")

# What `net` may be a row of.
CHAINS = (
    ["backbone", "MFCN", "UniAD"],
    ["backbone", "MFCN", "UniAD", "Discriminator"],
    ["backbone", "MFCN", "VisDecoder"],
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
        for name in ("class_name", "separate"):
            if merged[name] and merged["type"] != "custom":
                raise UserError(f"dataset.{name} is for data sets of type custom, {merged['type']} has one class only")


def check_training(config: dict[str, Any]) -> None:
    """Try optimiser and schedule on one number, and hold losses and key metric against what the configuration computes."""
    if trainer := config.get("trainer"):
        optimizer = try_build(torch.optim, trainer["optimizer"], "trainer.optimizer", [torch.zeros(1, requires_grad=True)])
        schedule = trainer["lr_scheduler"]
        if schedule["type"] == "OneCycleLR" and "total_steps" in schedule["kwargs"]:
            raise UserError("trainer.lr_scheduler.kwargs.total_steps follows from max_epoch and the data: leave it out")
        max_lr = schedule["kwargs"].get("max_lr", 1)
        if isinstance(max_lr, bool) or not isinstance(max_lr, int | float) or not 0 < max_lr < math.inf:
            raise UserError("trainer.lr_scheduler.kwargs.max_lr must be one number above 0; net[].lr_scale multiplies it")
        length = {"total_steps": 10**9} if schedule["type"] == "OneCycleLR" else {}
        try_build(torch.optim.lr_scheduler, schedule, "trainer.lr_scheduler", optimizer, **length)
        step_size = schedule["kwargs"].get("step_size", 1)
        if not isinstance(step_size, int | float) or not step_size >= 1:
            raise UserError(f"trainer.lr_scheduler.kwargs.step_size must be at least 1, not {step_size!r}")
    if config["reproduce"] and config["random_seed"] is None:
        raise UserError("reproduce: True needs a random_seed")
    types = {subnet["type"] for subnet in config["net"]}
    check_discriminator(config, types)
    if "criterion" in config:
        check_losses(config, types)
    if evaluator := config.get("evaluator"):
        if "models.reconstructions.UniAD" not in types:
            raise UserError("evaluator needs a subnet of type models.reconstructions.UniAD, which makes the anomaly map")
        metrics = [f"{score['name']}_{kind}" for kind, scores in evaluator["metrics"].items() for score in scores]
        check_scores(evaluator["metrics"], config.get("dataset", {}).get("input_size"))
        if not any(evaluator["key_metric"].endswith(f"_{metric}") for metric in metrics):
            choices = ", ".join(f"mean_{metric}" for metric in metrics)
            raise UserError(f"evaluator.key_metric '{evaluator['key_metric']}' is not computed: use one of {choices}")


def check_losses(config: dict[str, Any], types: set[str]) -> None:
    """Each loss has its subnet, and each subnet that learns its loss."""
    for criterion in config["criterion"]:
        if (needed := LOSSES[criterion["type"]].subnet) not in types:
            raise UserError(f"criterion '{criterion['name']}': {criterion['type']} needs a subnet of type {needed}")
    given = {criterion["type"] for criterion in config["criterion"]}
    for subnet in config["net"]:
        frozen = subnet["frozen"] or subnet["name"] in config["frozen_layers"]
        needed = next((name for name, loss in LOSSES.items() if loss.subnet == subnet["type"]), None)
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


def check_scores(metrics: dict[str, list], input_size: Sequence[int] | None) -> None:
    """Each score once a metric, and an averaging window for max only, that fits into the map."""
    for kind, scores in metrics.items():
        where = f"evaluator.metrics.{kind}"
        if len({score["name"] for score in scores}) < len(scores):
            raise UserError(f"{where} names a score twice")
        for score in scores:
            window = score.get("kwargs", {}).get("avgpool_size")
            if window and score["name"] != "max":
                raise UserError(f"{where}: avgpool_size is for the score max, not {score['name']}")
            if window and input_size and any(w > side for w, side in zip(window, input_size, strict=True)):
                raise UserError(f"{where}: avgpool_size {window} is larger than dataset.input_size {list(input_size)}")


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
            "and after models.reconstructions.UniAD optionally models.discriminators.Discriminator"
        )
    data = config.get("dataset") or config.get("data") or {}
    input_size = data.get("input_size")
    planes: list[int] = []
    strides: list[int] = []
    features: dict[str, list[int]] = {}
    for before, subnet in zip([None, *names], config["net"], strict=False):
        where, kind, kwargs = f"net.{subnet['name']}", SUBNET_KINDS[subnet["type"]], subnet["kwargs"]
        if subnet["prev"] not in (None, before):
            raise UserError(f"{where}.prev '{subnet['prev']}' must be '{before}', the subnet before it")
        subnet["frozen"] = subnet["frozen"] or subnet["name"] in config["frozen_layers"]
        if subnet["frozen"] and (kind == "Discriminator" or kwargs.get("standardise")):
            raise UserError(f"{where} cannot be frozen: what features are standardised by is found in training")
        if kind in ("backbone", "timm"):
            planes, strides = backbone_outputs(subnet, data)
            features = {"inplanes": planes, "instrides": strides}
            check_divisible(input_size, max(strides), f"{where}.kwargs.outlayers")
            continue
        if kind == "Discriminator":
            kwargs.update(features)
            check_divisible(input_size, kwargs["outstride"], f"{where}.kwargs.outstride")
            continue
        kwargs.update(inplanes=planes, instrides=strides)
        if kind == "MFCN":
            if len(kwargs["outstrides"]) != 1:
                raise UserError(f"{where}.kwargs.outstrides must hold one stride, not {kwargs['outstrides']}")
            planes, strides = [sum(planes)], list(kwargs["outstrides"])
            kwargs["outplanes"] = planes
            check_divisible(input_size, strides[0], f"{where}.kwargs.outstrides")
        if kind == "UniAD" and input_size:
            kwargs["feature_size"] = [side // strides[0] for side in input_size]


def backbone_outputs(subnet: dict[str, Any], data: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Channels and strides at the backbone's outlayers. A timm model gets the size of the images among its kwargs, in place."""
    kwargs = subnet["kwargs"]
    if SUBNET_KINDS[subnet["type"]] != "timm":
        return layer_outputs(subnet["type"].rsplit(".")[-1], kwargs["outlayers"])
    kwargs["input_size"] = data.get("input_size")
    outputs = timm_outputs(kwargs["name"], kwargs["outlayers"], kwargs["input_size"])
    own = timm_mean_std(kwargs["name"])
    if kwargs["pretrained"] and data and not np.allclose(own, [data["pixel_mean"], data["pixel_std"]], atol=0.001):
        log.warning("%s was trained with pixel_mean %s, pixel_std %s: the configuration has others", kwargs["name"], *own)
    return outputs


def check_divisible(input_size: Sequence[int] | None, stride: int, cause: str) -> None:
    for side in input_size or ():
        if side % stride:
            raise UserError(f"dataset.input_size {list(input_size)} must be divisible by {stride}, the stride given by {cause}")
