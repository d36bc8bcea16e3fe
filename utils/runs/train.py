"""Train from a configuration."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from datasets.base import ImageDataset
from datasets.build import build_dataset
from datasets.lists import read_list
from datasets.roi import Roi
from datasets.tiled import in_tiles, tiles_of
from models import build_network
from models.losses import Criterion
from utils.config import to_plain
from utils.config.schema import MEMORY
from utils.errors import Interrupted, UserError
from utils.evaluation.evaluate import compute_metrics, evaluate, write_results
from utils.evaluation.maps import MapForm
from utils.process.checkpoint import find_start, load_checkpoint, load_network_state, remove_checkpoints
from utils.process.distributed import Process, barrier, on_main, share_weights
from utils.process.log import remove_events
from utils.runs.evaluate import log_results
from utils.runs.start import build_loader, describe_process, seed_run, warn_of_new_classes, writes
from utils.training.feature_cache import cached
from utils.training.footprint import check_memory
from utils.training.memory import MemoryFiller
from utils.training.optimizer import build_optimizer, build_scheduler
from utils.training.resume import resume
from utils.training.trainer import Trainer, count_epochs, run_steps

log = logging.getLogger("uniad")


@writes("saver.save_dir", "saver.log_dir", "evaluator.save_dir")
def train(config: EasyDict, process: Process, overwrite: bool = False) -> None:
    """Train as configured, from a checkpoint or from the start. Every process must call it."""
    start = on_main(lambda: find_start(config.saver, overwrite), process)
    seed = seed_run(config, process)
    train_set, test_set = in_tiles(build_dataset(config.dataset, "train", seed)), None
    fills = MEMORY in {subnet.type for subnet in config.net}
    train_set.training = not fills  # a memory sees each image once, in order, as evaluation does
    order = "test" if fills else "train"
    key, val_freq = config.evaluator.key_metric, config.trainer.val_freq_epoch
    if {**config.dataset, **config.dataset.test}["meta_file"] or config.dataset.type != "custom":
        test_set = in_tiles(build_dataset(config.dataset, "test", seed))
        check_key_metric(key, test_set.clsnames)
    else:
        log.info("no list of test images (dataset.test.meta_file): nothing is validated, the best checkpoint has the least loss")
        key = "loss"
    test_names = test_set.filenames if test_set else []
    counts = describe_count(train_set), describe_count(test_set)
    log.info("%s training images, %s test images; %s", *counts, describe_process(config, order, process))
    both = sorted({*train_set.filenames} & {*test_names})
    if both and config.dataset.type == "custom":
        if wrong := next((name for name in both if test_set.labels[test_names.index(name)]), None):
            lists = train_set.meta_file, test_set.meta_file
            raise UserError(f"{wrong} is good in {lists[0]} and defective in {lists[1]}: correct one of these lists")
        log.warning("%d test images are in training too, so results say little; the first is %s", len(both), both[0])
    steps = len(build_loader(train_set, config, order, process))
    trainer = build_filler(config, process, start, seed) if fills else build_trainer(config, process, start, steps, best_by=key)
    warn_of_new_classes(trainer.history, train_set.clsnames, "the run so far")
    if is_trained(trainer, steps):
        return
    if not fills:
        check_memory(trainer, len(train_set))
    try:
        train_set = cached(train_set, trainer.network, trainer.config, process, "train")
        if test_set:
            test_set = cached(test_set, trainer.network, trainer.config, process, "test")
            test_loader = build_loader(test_set, config, "test", process)
    except Interrupted:
        if overwrite:  # a job that is queued again must not go on from the earlier run
            clear_run(config, process)
        raise
    if overwrite:
        clear_run(config, process)

    def validate() -> dict[str, float]:
        form, precision = MapForm.of(config.evaluator), trainer.precision
        evaluation = evaluate(trainer.network, test_loader, trainer.criterion, process, precision=precision, form=form)
        results = compute_metrics(evaluation, config.evaluator.metrics, process)
        if not process.is_main:
            return {}
        log_results(results, evaluation.losses.mean())
        write_results(config.evaluator.save_dir, evaluation, results, config.evaluator.metrics)
        numbers = results.numbers()
        if math.isnan(numbers.get(key, math.nan)):  # its class may have had no image that could be read
            log.warning("evaluator.key_metric %s has no number, so no checkpoint is the best", key)
        return numbers

    loader, validation = build_loader(train_set, config, order, process, seed), validate if test_set else dict
    if fills:
        trainer.train(loader, validation)
    else:
        trainer.train(loader, validation, val_freq)
    if process.is_main:
        log.info("ckpt.pth.tar is the result")
        if not fills and math.isfinite(trainer.best_metric):
            where = "on the test set" if test_set else "in training"
            log.info("ckpt_best.pth.tar is the best %s, %s %.4f", where, key, trainer.best_metric)


def build_trainer(config: EasyDict, process: Process, start: Path | None, steps: int, best_by: str = "loss") -> Trainer:
    """A trainer as the checkpoint `start` left it, or a new one, with the weights of saver.init_from where that is set.

    steps: of an epoch. best_by: see Trainer.
    """
    init_from = None if start else config.saver.init_from
    network = build_network(config.net, with_pretrained=not (start or init_from)).to(process.device)
    optimizer = build_optimizer(network, config.trainer.optimizer, {subnet.name: subnet.lr_scale for subnet in config.net})
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler, run_steps(config.trainer, steps))
    trainer = Trainer(network, Criterion(config.criterion), optimizer, scheduler, self_contained(config), process, best_by)
    if start:
        resume(trainer, start)
        images = f" and {trainer.images_seen} images of the next" if trainer.images_seen else ""
        log.info("resumed from %s after epoch %d of %d%s", start, trainer.epoch, count_epochs(config.trainer, steps), images)
    elif init_from:
        load_network_state(network, load_checkpoint(init_from)["state_dict"], init_from)
        log.info("new run with the weights of %s", init_from)
    share_weights(network, process)  # before features are computed with them
    return trainer


def build_filler(config: EasyDict, process: Process, start: Path | None, seed: int) -> MemoryFiller:
    """A filler of the network's memory as the checkpoint `start` left it, or a new one."""
    if config.saver.init_from:
        raise UserError("saver.init_from: a memory is filled at once; tools/add_class.py adds classes to a checkpoint's")
    network = build_network(config.net, with_pretrained=not start).to(process.device)
    filler = MemoryFiller(network, Criterion(config.criterion), self_contained(config), process, seed)
    if start:
        filler.resume(start)
    share_weights(network, process)
    return filler


def self_contained(config: EasyDict) -> dict[str, Any]:
    """The configuration as checkpoints hold it: with the regions of interest in place of their file."""
    plain = to_plain(config)
    if roi := plain["dataset"].get("roi"):
        splits = [{**plain["dataset"], **plain["dataset"][split]} for split in ("train", "test")]
        lists = [read_list(split["meta_file"]) for split in splits if split["meta_file"]]
        names = {record["clsname"] for records in lists for record in records}
        only = splits[0]["class_name"]
        plain["dataset"]["roi"] = Roi.read(roi, {only} if only else names).to_list()
    return plain


def is_trained(trainer: Trainer | MemoryFiller, steps: int) -> bool:
    """Whether the configured epochs, of `steps` each, are done already; a log line says what one can do then."""
    fills = isinstance(trainer, MemoryFiller)
    if trainer.epoch < (1 if fills else count_epochs(trainer.config["trainer"], steps)):
        return False
    has_end = fills or trainer.schedules_steps or trainer.last_step <= trainer.epoch * steps  # a later end needs a new run
    longer = "" if has_end else "train longer with trainer.max_epoch, "
    log.info("nothing left to train: use it as it is, %sor start over with --overwrite", longer)
    return True


def describe_count(data: ImageDataset | None) -> str:
    """How many photographs, and tiles of them."""
    tiles = tiles_of(data) if data else None
    return f"{len(tiles.whole)} (in {len(tiles)} tiles)" if tiles else str(len(data or ()))


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
