"""Evaluate a checkpoint: table, scores, intervals, pictures and report."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from easydict import EasyDict

from datasets.base import ImageDataset
from datasets.build import build_dataset
from datasets.tiled import in_tiles
from models import build_network
from models.losses import Criterion
from utils.config import to_plain
from utils.evaluation.calibration import Calibration, calibration_of
from utils.evaluation.evaluate import Evaluation, compute_metrics, evaluate, write_results
from utils.evaluation.intervals import bootstrap, format_intervals, write_intervals
from utils.evaluation.maps import MapForm
from utils.evaluation.region_rates import format_rates, measure_regions
from utils.evaluation.results import Results, without_nan
from utils.files import write_text
from utils.process.checkpoint import load_checkpoint, load_network_state
from utils.process.distributed import Process
from utils.process.precision import choose_precision
from utils.process.versions import versions
from utils.report.gallery import headline_score, save_gallery
from utils.report.pictures import save_pictures
from utils.runs.start import build_loader, describe_process, seed_run, warn_of_new_classes, writes

log = logging.getLogger("uniad")


@writes("evaluator.save_dir", "evaluator.vis_compound.save_dir", "evaluator.vis_single.save_dir")
def evaluate_checkpoint(config: EasyDict, process: Process) -> None:
    """Evaluate `saver.load_path`: table, scores and intervals, and the pictures and features that are configured."""
    seed_run(config, process)
    content = load_checkpoint(config.saver.load_path)
    network = build_network(config.net, with_pretrained=False).to(process.device)
    load_network_state(network, content["state_dict"], config.saver.load_path)
    test_set = build_dataset(config.dataset, "test")
    loader = build_loader(in_tiles(test_set), config, "test", process)
    warn_of_new_classes(content.get("history", []), test_set.clsnames, config.saver.load_path)
    log.info(
        "%s, epoch %s; %d test images; %s",
        config.saver.load_path,
        content.get("epoch"),
        len(test_set),
        describe_process(config, "test", process),
    )
    saves = (subnet.kwargs.get("save_recon") for subnet in config.net)
    recon_dir = next((saved["save_dir"] for saved in saves if saved), None)
    precision = choose_precision(config.trainer.precision)
    evaluation = evaluate(
        network, loader, Criterion(config.criterion), process, recon_dir, precision, MapForm.of(config.evaluator)
    )
    results = compute_metrics(evaluation, config.evaluator.metrics, process)
    if process.is_main:
        write_evaluation(config, content, evaluation, results, test_set)


def write_evaluation(
    config: EasyDict, checkpoint: dict[str, Any], evaluation: Evaluation, results: Results, test_set: ImageDataset
) -> None:
    """Log the results and write every result file: table, scores, intervals, the configured pictures, report. On rank 0 only."""
    write_results(config.evaluator.save_dir, evaluation, results, config.evaluator.metrics)
    log_results(results, evaluation.losses.mean())
    intervals = bootstrap(evaluation, config.evaluator.metrics, results)
    write_intervals(config.evaluator.save_dir, intervals)
    if text := format_intervals(intervals):
        log.info("%s", text)
    calibration = calibration_of(config.saver.load_path)
    if calibration and calibration.pooled.pixel_threshold is not None:
        rates = measure_regions(config.evaluator.save_dir, evaluation, calibration)
        log.info("regions at %g %% false alarms\n%s", 100 * calibration.false_alarm_rate, format_rates(rates))
    elif config.dataset.type == "custom":
        log.info("no decisions: tools/calibrate.py --config C chooses thresholds for this checkpoint; then evaluate it again")
    for style in ("vis_compound", "vis_single"):
        if config.evaluator[style]:
            save_pictures(style, evaluation, test_set, **config.evaluator[style])
            log.info("%s: pictures of %d images in %s", style, len(evaluation), config.evaluator[style].save_dir)
    log.info("report: %s", write_report_of(config, checkpoint, evaluation, test_set, calibration))


def write_report_of(
    config: EasyDict,
    checkpoint: dict[str, Any],
    evaluation: Evaluation,
    test_set: ImageDataset,
    calibration: Calibration | None,
) -> Path:
    """Complete the result folder with the gallery and run.json, and write report.html from it."""
    from utils.report.page import write_report  # imported here: it takes a second, which training need not pay

    folder, metrics = Path(config.evaluator.save_dir), config.evaluator.metrics
    score = calibration.score if calibration else headline_score(metrics, config.evaluator.key_metric)
    save_gallery(folder, evaluation, test_set, score, metrics, calibration)
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


def log_results(results: Results, loss: float) -> None:
    if all(math.isnan(value) for value in results.mean):
        why = "images of one label only, such as no defective ones; scores.csv has the scores"
        log.warning("test loss %.4f; no metric has a number: %s", loss, why)
        return
    log.info("test loss %.4f\n%s", loss, results.text())
    if missing := results.missing():
        names = ", ".join(missing[:10]) + ", …" * (len(missing) > 10)
        log.warning("no number for %s: images of one label only, or no masks", names)
