"""A whole run from a configuration: train, or evaluate a checkpoint."""

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from easydict import EasyDict
from torch import nn
from torch.utils.data import DataLoader

from datasets import build_dataloader, build_dataset
from models import build_network
from utils.checkpoint import load_checkpoint, load_network_state
from utils.config import to_plain
from utils.distributed import Process, barrier, broadcast
from utils.errors import UserError
from utils.evaluation import compute_metrics, evaluate, format_table, missing_metrics, write_results
from utils.log import open_tensorboard
from utils.losses import Criterion
from utils.seeding import make_reproducible, seed_everything
from utils.training import Trainer, build_optimizer, build_scheduler, find_start, fit, remove_checkpoints
from utils.visualize import save_pictures

log = logging.getLogger("uniad")


def train(config: EasyDict, process: Process, overwrite: bool = False) -> None:
    """Train as configured, from a checkpoint or anew; every process must call it."""
    start = find_start(config.saver, overwrite)
    seed = start_random(config, process)
    train_set, test_set = (build_dataset(config.dataset, split, seed) for split in ("train", "test"))
    train_loader, test_loader = (
        load(data, config, split, process, seed) for data, split in ((train_set, "train"), (test_set, "test"))
    )
    check_key_metric(config.evaluator.key_metric, test_set.clsnames)
    init_from = None if start else config.saver.init_from
    network = build(config, process, with_pretrained=not (start or init_from))
    optimizer = build_optimizer(network, config.trainer.optimizer)
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler)
    trainer = Trainer(network, Criterion(config.criterion), optimizer, scheduler, process)

    log.info("%d training images, %d test images; %s", len(train_set), len(test_set), describe(process))
    if start:
        trainer.restore(start, to_plain(config.trainer))
        log.info("resumed from %s after epoch %d of %d", start, trainer.epoch, config.trainer.max_epoch)
    elif init_from:
        load_network_state(network, load_checkpoint(init_from)["state_dict"], init_from)
        log.info("new run with the weights of %s", init_from)
    if trainer.epoch >= config.trainer.max_epoch:
        log.info("nothing left to train: evaluate with -e, train longer with trainer.max_epoch, or start anew with --overwrite")
        return
    if overwrite:
        barrier(process)  # every process has read what it starts from
        if process.is_main:
            remove_checkpoints(config.saver.save_dir)

    writer = open_tensorboard(config.saver.log_dir, process)

    def validate() -> float | None:
        evaluation = evaluate(network, test_loader, trainer.criterion, process)
        if evaluation is None:
            return None
        results = compute_metrics(evaluation, config.evaluator.metrics)
        report(results, evaluation.losses.mean(), config)
        write_results(config.evaluator.save_dir, evaluation, results, config.evaluator.metrics)
        for key, value in results.items():
            writer.add_scalar(f"test/{key}", value, trainer.epoch)
        return results[config.evaluator.key_metric]

    fit(trainer, train_loader, validate, to_plain(config), writer)
    if writer:
        writer.close()
    if process.is_main:
        log.info("ckpt.pth.tar is the result")
        if math.isfinite(trainer.best_metric):
            log.info("ckpt_best.pth.tar is the best on the test set, %s %.4f", config.evaluator.key_metric, trainer.best_metric)


def evaluate_checkpoint(config: EasyDict, process: Process) -> None:
    """Evaluate `saver.load_path`: the table, metrics.json, scores.csv, and the pictures and features that are configured."""
    start_random(config, process)
    content = load_checkpoint(config.saver.load_path)
    network = build(config, process, with_pretrained=False)
    load_network_state(network, content["state_dict"], config.saver.load_path)
    test_set = build_dataset(config.dataset, "test")
    loader = load(test_set, config, "test", process, seed=0)
    log.info("%s, epoch %s; %d test images; %s", config.saver.load_path, content.get("epoch"), len(test_set), describe(process))
    reconstruction = getattr(network, config.net[-1].name)
    recon_dir = (getattr(reconstruction, "save_recon", None) or {}).get("save_dir")
    evaluation = evaluate(network, loader, Criterion(config.criterion), process, recon_dir)
    if evaluation is None:
        return
    results = compute_metrics(evaluation, config.evaluator.metrics)
    write_results(config.evaluator.save_dir, evaluation, results, config.evaluator.metrics)
    report(results, evaluation.losses.mean(), config)
    for style in ("vis_compound", "vis_single"):
        if config.evaluator[style]:
            save_pictures(style, evaluation, test_set, **config.evaluator[style])
            log.info("%s: pictures of %d images in %s", style, len(test_set), config.evaluator[style].save_dir)
    log.info("results in %s", config.evaluator.save_dir)


def check_key_metric(key_metric: str, clsnames: Sequence[str]) -> None:
    """Raises UserError if the key metric "<class>_<name>_<kind>" is of a class that the test set does not have."""
    clsname = key_metric.rsplit("_", 2)[0]
    if clsname not in ("mean", *clsnames):
        raise UserError(f"evaluator.key_metric '{key_metric}': the test set has no class '{clsname}'")


def start_random(config: EasyDict, process: Process) -> int:
    """Seed this process; returns the seed that all processes share, drawn where the configuration gives none."""
    if config.reproduce:
        make_reproducible()
    if config.random_seed is None:
        return broadcast(int.from_bytes(os.urandom(4), "big"), process)
    seed_everything(config.random_seed + process.rank)
    return config.random_seed


def build(config: EasyDict, process: Process, with_pretrained: bool) -> nn.Module:
    """The network on this process's device. A checkpoint that is loaded next makes pretrained weights needless."""
    net = [EasyDict(subnet) for subnet in to_plain(config)["net"]]
    for subnet in net:
        if "pretrained" in subnet.kwargs and not with_pretrained:
            subnet.kwargs.pretrained = False
    return build_network(net).to(process.device)


def load(data: Any, config: EasyDict, split: str, process: Process, seed: int) -> DataLoader:
    pin_memory = process.device.type == "cuda"
    return build_dataloader(data, config.dataset, split, process.rank, process.world_size, seed, pin_memory)


def describe(process: Process) -> str:
    processes = "1 process" if process.world_size == 1 else f"{process.world_size} processes"
    return f"{processes} on CPU, no GPU is visible" if process.device.type == "cpu" else f"{processes}, a GPU each"


def report(results: dict[str, float], loss: float, config: EasyDict) -> None:
    log.info("test loss %.4f\n%s", loss, format_table(results, config.evaluator.metrics))
    if missing := missing_metrics(results):
        log.warning("no number for %s: images of one label only, or no masks", ", ".join(missing))
