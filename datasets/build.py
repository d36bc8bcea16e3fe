"""Builds data sets and their loaders from the configuration."""

import torch

from datasets.base import ImageDataset
from datasets.cached import FeatureDataset
from datasets.cifar10 import CIFAR10Dataset
from datasets.custom import CustomDataset
from datasets.images import ImageReader
from datasets.loading import ImageLoader, SampleReader
from datasets.samplers import EvalSampler, TrainSampler
from datasets.tiles import Tiles
from datasets.transforms import Transform
from utils.errors import UserError


def build_dataset(cfg: dict, split: str, seed: int = 0) -> ImageDataset:
    """The data set of a split, not yet cut into tiles; cfg is the configuration's `dataset` section with absolute paths.

    split: "train", "test", or "holdout", the training images that `holdout` excludes from training.
    """
    cfg = _of_split(cfg, "train" if split == "holdout" else split)
    training = split == "train"  # only training samples are augmented
    options = {key: cfg[key] for key in ("hflip", "vflip", "rotate", "colorjitter") if key in cfg}
    options |= {key: cfg[key] for key in ("input_size", "pixel_mean", "pixel_std")} | {"crop": cfg.get("crop")}
    pseudo_anomalies = cfg.get("pseudo_anomalies", False)
    if cfg["type"] == "custom":
        if not cfg.get("meta_file"):
            raise UserError(f"dataset.{split}.meta_file is missing: give the list that tools/prepare_data.py made")
        reader = ImageReader(**cfg["image_reader"]["kwargs"])
        transform = Transform(**options, color_mode=reader.color_mode)
        parts = {} if split == "test" else {"holdout": cfg.get("holdout", 0), "held_out": split == "holdout"}
        parts |= {} if split == "test" else {"on_defective_train": cfg.get("on_defective_train", "keep")}
        parts |= {"on_bad_image": cfg.get("on_bad_image", "stop"), "pseudo_anomalies": pseudo_anomalies}
        parts |= {"roi": cfg.get("roi"), "tiles": Tiles.of(cfg.get("tiles"))}
        return CustomDataset(cfg["meta_file"], reader, transform, training, seed, cfg.get("class_name"), **parts)
    if cfg.get("holdout"):
        raise UserError(f"dataset.holdout is for data sets of type custom, not {cfg['type']}")
    if cfg["type"] == "cifar10":
        transform = Transform(**options, resample="lanczos")
        return CIFAR10Dataset(cfg["root_dir"], cfg["normals"], transform, training, seed, pseudo_anomalies)
    raise UserError(f"dataset.type {cfg['type']!r} is not one of custom, cifar10")


def build_dataloader(
    dataset: SampleReader, cfg: dict, split: str, rank: int = 0, world_size: int = 1, seed: int = 0, pin_memory: bool = False
) -> ImageLoader:
    """The loader of one process. batch_size and workers count per process; a last, smaller batch is kept, in training
    unless `drop_last` is set and there is a full one.

    In training, set `dataset.epoch` and call `loader.sampler.set_epoch` before each epoch.
    """
    cfg = _of_split(cfg, split)
    if split == "train":
        clsnames = dataset.clsnames if cfg.get("rebalance") else None
        sampler = TrainSampler(len(dataset), rank, world_size, seed, clsnames)
    else:
        sampler = EvalSampler(len(dataset), rank, world_size)
    return ImageLoader(
        dataset,
        batch_size=cfg["batch_size"],
        drop_last=split == "train" and cfg.get("drop_last", False) and len(sampler) >= cfg["batch_size"],
        sampler=sampler,
        num_workers=0 if isinstance(dataset, FeatureDataset) else cfg["workers"],  # a row of memory needs no worker
        pin_memory=pin_memory,
        persistent_workers=False,  # workers that start with the epoch know its number
        generator=torch.Generator().manual_seed(seed),  # else starting a loader would use the global one
    )


def _of_split(cfg: dict, split: str) -> dict:
    return {**cfg, **(cfg.get(split) or {})}
