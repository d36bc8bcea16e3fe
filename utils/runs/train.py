"""A whole run from a configuration: train, or evaluate a checkpoint."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from easydict import EasyDict

from datasets.build import build_dataset
from models import build_network
from models.losses import Criterion
from utils.config import to_plain
from utils.errors import UserError
from utils.evaluation.evaluate import compute_metrics, evaluate, write_results
from utils.files import check_writable
from utils.process.checkpoint import find_start, load_checkpoint, load_network_state, remove_checkpoints
from utils.process.distributed import Process, barrier, on_main, share_weights
from utils.process.log import remove_events
from utils.process.precision import choose_precision
from utils.runs.evaluate import print_results
from utils.runs.start import describe, load, start_random
from utils.training.feature_cache import cached
from utils.training.optimizer import build_optimizer, build_scheduler
from utils.training.trainer import Trainer, fit

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
    network = build_network(config.net, with_pretrained=not (start or init_from)).to(process.device)
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


def check_key_metric(key_metric: str, clsnames: Sequence[str]) -> None:
    """Raises UserError if the key metric "<class>_<name>_<kind>" is of a class that the test set does not have."""
    clsname = key_metric.rsplit("_", 2)[0]
    if clsname not in ("mean", *clsnames):
        raise UserError(f"evaluator.key_metric '{key_metric}': the test set has no class '{clsname}'")
