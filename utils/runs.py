"""A whole run from a configuration: train, or evaluate a checkpoint."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict
from torch import nn
from torch.utils.data import DataLoader

from datasets import ImageDataset, build_dataloader, build_dataset
from models import build_network
from utils.checkpoint import find_start, load_checkpoint, load_network_state, remove_checkpoints
from utils.config import to_plain
from utils.distributed import Process, barrier, broadcast, on_main, share_weights
from utils.errors import UserError
from utils.evaluation import Evaluation, compute_metrics, evaluate, format_table, missing_metrics, without_nan, write_results
from utils.feature_cache import FeatureDataset, cached
from utils.files import check_writable, write_text
from utils.gallery import headline_score, save_gallery
from utils.intervals import bootstrap, format_intervals, write_intervals
from utils.log import remove_events
from utils.losses import Criterion
from utils.optimizer import build_optimizer, build_scheduler
from utils.precision import choose_precision
from utils.seeding import make_reproducible, seed_everything
from utils.training import Trainer, fit
from utils.versions import versions
from utils.visualize import save_pictures

log = logging.getLogger("uniad")


def train(config: EasyDict, process: Process, overwrite: bool = False) -> None:
    """Train as configured, from a checkpoint or anew; every process must call it."""
    start = on_main(lambda: find_start(config.saver, overwrite), process)
    for folder in (config.saver.save_dir, config.evaluator.save_dir):
        on_main(lambda folder=folder: check_writable(folder), process)
    seed = start_random(config, process)
    train_set, test_set = (build_dataset(config.dataset, split, seed) for split in ("train", "test"))
    key, val_freq = config.evaluator.key_metric, config.trainer.val_freq_epoch
    check_key_metric(key, test_set.clsnames)
    log.info("%d training images, %d test images; %s", len(train_set), len(test_set), describe(process))
    steps = len(load(train_set, config, "train", process, seed))
    trainer = build_trainer(config, process, start, steps)
    if is_trained(trainer, config):
        return
    plain = to_plain(config)
    train_set, test_set = (
        cached(data, trainer.network, plain, process, split) for data, split in ((train_set, "train"), (test_set, "test"))
    )
    if overwrite:
        clear_run(config, process)
    train_loader, test_loader = (
        load(data, config, split, process, seed) for data, split in ((train_set, "train"), (test_set, "test"))
    )
    precision = choose_precision(config.trainer.precision)

    def validate() -> dict[str, float]:
        evaluation = evaluate(trainer.network, test_loader, trainer.criterion, process, precision=precision)
        results = compute_metrics(evaluation, config.evaluator.metrics, process)
        if not process.is_main:
            return {}
        print_results(results, evaluation.losses.mean(), config)
        write_results(config.evaluator.save_dir, evaluation, results, config.evaluator.metrics)
        if math.isnan(results.get(key, math.nan)):  # its class may have had no image that could be read
            log.warning("evaluator.key_metric %s has no number, so no checkpoint is the best", key)
        return results

    fit(trainer, train_loader, validate, key, plain, val_freq, save_freq=val_freq)
    if process.is_main:
        log.info("ckpt.pth.tar is the result")
        if math.isfinite(trainer.best_metric):
            log.info("ckpt_best.pth.tar is the best on the test set, %s %.4f", key, trainer.best_metric)


def build_trainer(config: EasyDict, process: Process, start: Path | None, steps: int, best_metric: float = -math.inf) -> Trainer:
    """What is trained, as the checkpoint `start` left it, with the weights of saver.init_from, or new.

    steps: of an epoch. best_metric: what a new run has, the worst value there is.
    """
    init_from = None if start else config.saver.init_from
    network = build(config, process, with_pretrained=not (start or init_from))
    optimizer = build_optimizer(network, config.trainer.optimizer, {subnet.name: subnet.lr_scale for subnet in config.net})
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler, config.trainer.max_epoch * steps)
    trainer = Trainer(network, Criterion(config.criterion), optimizer, scheduler, process, best_metric=best_metric)
    if start:
        trainer.restore(start, to_plain(config))
        images = f" and {trainer.images} images of the next" if trainer.images else ""
        log.info("resumed from %s after epoch %d of %d%s", start, trainer.epoch, config.trainer.max_epoch, images)
    elif init_from:
        load_network_state(network, load_checkpoint(init_from)["state_dict"], init_from)
        log.info("new run with the weights of %s", init_from)
    share_weights(network, process)  # before features are computed with them
    return trainer


def is_trained(trainer: Trainer, config: EasyDict) -> bool:
    """Whether the configured epochs are done already; a line says what one can do then."""
    if trainer.epoch < config.trainer.max_epoch:
        return False
    longer = "" if trainer.by_step else "train longer with trainer.max_epoch, "  # a schedule over the whole run is at its end
    log.info("nothing left to train: use it as it is, %sor start anew with --overwrite", longer)
    return True


def clear_run(config: EasyDict, process: Process) -> None:
    """Remove an earlier run's checkpoints and curves, once every process has read what it starts from."""
    barrier(process)
    if process.is_main:
        remove_checkpoints(config.saver.save_dir)
        remove_events(config.saver.log_dir)


def evaluate_checkpoint(config: EasyDict, process: Process) -> None:
    """Evaluate `saver.load_path`: table, scores and intervals, and the pictures and features that are configured."""
    start_random(config, process)
    on_main(lambda: check_writable(config.evaluator.save_dir), process)
    content = load_checkpoint(config.saver.load_path)
    network = build(config, process, with_pretrained=False)
    load_network_state(network, content["state_dict"], config.saver.load_path)
    test_set = build_dataset(config.dataset, "test")
    loader = load(test_set, config, "test", process, seed=0)
    log.info("%s, epoch %s; %d test images; %s", config.saver.load_path, content.get("epoch"), len(test_set), describe(process))
    reconstruction = getattr(network, config.net[2].name)
    recon_dir = (getattr(reconstruction, "save_recon", None) or {}).get("save_dir")
    precision = choose_precision(config.trainer.precision)
    evaluation = evaluate(network, loader, Criterion(config.criterion), process, recon_dir, precision)
    results = compute_metrics(evaluation, config.evaluator.metrics, process)
    if process.is_main:
        write_evaluation(config, content, evaluation, results, test_set)


def write_evaluation(
    config: EasyDict, checkpoint: dict[str, Any], evaluation: Evaluation, results: dict[str, float], test_set: ImageDataset
) -> None:
    """Say and write all of an evaluation: table, scores, intervals, the configured pictures, report. One process calls it."""
    write_results(config.evaluator.save_dir, evaluation, results, config.evaluator.metrics)
    print_results(results, evaluation.losses.mean(), config)
    intervals = bootstrap(evaluation, config.evaluator.metrics, results)
    write_intervals(config.evaluator.save_dir, intervals)
    log.info("%s", format_intervals(intervals))
    for style in ("vis_compound", "vis_single"):
        if config.evaluator[style]:
            save_pictures(style, evaluation, test_set, **config.evaluator[style])
            log.info("%s: pictures of %d images in %s", style, len(evaluation), config.evaluator[style].save_dir)
    log.info("report: %s", write_report_of(config, checkpoint, evaluation, test_set))


def write_report_of(config: EasyDict, checkpoint: dict[str, Any], evaluation: Evaluation, test_set: ImageDataset) -> Path:
    """Complete the result folder with the gallery and run.json, and write report.html from it."""
    from utils.report import write_report  # here: training has no need of a plotting library, which takes a second to import

    folder, metrics = Path(config.evaluator.save_dir), config.evaluator.metrics
    score = headline_score(metrics, config.evaluator.key_metric)
    save_gallery(folder, evaluation, test_set, score, metrics)
    run = {
        "checkpoint": config.saver.load_path,
        "epoch": checkpoint.get("epoch"),
        "score": score,
        "history": [without_nan(numbers) for numbers in checkpoint.get("history", [])],
        "config": to_plain(config),
        "versions": versions(),
    }
    write_text(folder / "run.json", json.dumps(run, indent=1) + "\n")
    return write_report(folder)


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
    cfg = to_plain(config.dataset)
    if isinstance(data, FeatureDataset):  # a row of memory is read sooner than a worker is asked for it
        cfg[split]["workers"] = 0
    return build_dataloader(data, cfg, split, process.rank, process.world_size, seed, pin_memory)


def describe(process: Process) -> str:
    processes, each = ("1 process", "") if process.world_size == 1 else (f"{process.world_size} processes", " each")
    return f"{processes} on CPU, no GPU is visible" if process.device.type == "cpu" else f"{processes} on a GPU{each}"


def print_results(results: dict[str, float], loss: float, config: EasyDict) -> None:
    log.info("test loss %.4f\n%s", loss, format_table(results, config.evaluator.metrics))
    if missing := missing_metrics(results):
        log.warning("no number for %s: images of one label only, or no masks", ", ".join(missing))
