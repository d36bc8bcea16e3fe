"""Calibrate a checkpoint: thresholds from its scores of held-out normal images, and their rates on the test set."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict
from tqdm import tqdm

from datasets.base import ImageDataset
from datasets.build import build_dataset
from utils.config import to_plain
from utils.errors import UserError
from utils.evaluation.calibration import (
    Calibration,
    Rates,
    Threshold,
    binomial_interval,
    calibrate,
    file_hash,
    images_needed,
    rates_at,
    save_calibration,
)
from utils.evaluation.evaluate import score_columns
from utils.evaluation.regions import region_level
from utils.evaluation.results import align_table, percentages, share
from utils.predict.batches import predict_batches
from utils.predict.inputs import Item
from utils.predict.predictor import Predictor, inside_at
from utils.predict.torch_engine import TorchEngine
from utils.report.gallery import headline_score
from utils.report.page import write_report
from utils.report.result_folder import Scores, read_result

HEADER = ("class", "threshold", "of a pixel", "held-out", "false alarms", "on test/good", "(95 %)", "defective found")
POOLED = "all classes"
INSTEAD = "or give a list of other normal images with --meta_file"

log = logging.getLogger("uniad")


def calibrate_checkpoint(
    config: EasyDict,
    checkpoint: str | Path,
    rate: float,
    meta_file: str | None = None,
    score: str | None = None,
    min_area: float = 0.0,
) -> str:
    """Write calibration.json beside the checkpoint; returns a table of the thresholds, with their rates on the test set.

    rate: of false alarms. The images are those that dataset.holdout kept out of training, or those of the list `meta_file`.
    score: the image score; None: headline_score's. min_area: smaller regions, as a share of the image's area, do not count.
    Raises UserError for an unknown score, if training may have seen the images, or if one is not normal.
    """
    if config.dataset.type != "custom":
        raise UserError(f"calibration is for data sets of type custom, dataset.type is {config.dataset.type}")
    engine = TorchEngine(checkpoint, config=config, score=choose_score(config, score))
    trained = engine.trained["dataset"] if engine.trained else {}
    holdout = {**trained, **(trained.get("train") or {})}.get("holdout", 0)
    dataset = to_plain(config.dataset)
    dataset["train"]["holdout"] = holdout  # as this checkpoint was trained
    if not meta_file and not trained:
        raise UserError(f"{checkpoint}: does not say which images it was trained on: train one with dataset.holdout, {INSTEAD}")
    data = other_images(dataset, meta_file) if meta_file else held_out_images(dataset, checkpoint)
    scores, levels, typical = score_images(Predictor(engine), data, config, min_area)
    pooled, classes = calibrate(scores, levels, data.clsnames, rate)
    calibration = Calibration(
        score=engine.score,
        false_alarm_rate=rate,
        checkpoint=Path(checkpoint).name,
        sha256=file_hash(checkpoint),
        epoch=engine.epoch,
        images=f"normal images of {meta_file}" if meta_file else f"dataset.holdout {holdout}",
        pooled=pooled,
        classes=classes,
        min_area=min_area,
        typical=typical,
    )
    path = save_calibration(calibration, checkpoint)
    warn_of_few_images(calibration, set(build_dataset(dataset, "train").clsnames))
    folder = Path(config.evaluator.save_dir)
    test = read_test_scores(folder, Path(checkpoint), calibration)
    if test is not None:
        warn_of_contradictions(calibration, test)
    lines = [format_thresholds(calibration, test), f"score {engine.score}, regions of {100 * min_area:g} % of the image or more"]
    lines.append(f"written to {path}")
    if len(classes) > 1:
        lines.append(
            "prediction takes the threshold of all classes unless a class is named: --class_name, or in the service's page"
        )
    if test is None:
        lines.append("for the rates on the test set evaluate this checkpoint with -e")
    elif (folder / "report.html").is_file():
        lines.append(f"report with the thresholds: {write_report(folder)}")
    return "\n".join(lines)


def held_out_images(dataset: dict[str, Any], checkpoint: str | Path) -> ImageDataset:
    """The images that training left out. dataset: the configuration's section."""
    holdout = dataset["train"]["holdout"]
    if not holdout:
        raise UserError(
            f"{checkpoint}: was trained with dataset.holdout 0, on all normal images, from which a threshold would be too low: "
            f"train with e.g. dataset.holdout=0.1, {INSTEAD}"
        )
    data = build_dataset(dataset, "holdout")
    if not len(data):
        raise UserError(f"dataset.holdout {holdout} was less than an image of each class: train with more, {INSTEAD}")
    return data


def other_images(dataset: dict[str, Any], meta_file: str) -> ImageDataset:
    """The images of a list, if all are normal and none was trained on. dataset: the configuration's section."""
    data = build_dataset({**dataset, "test": {**dataset["test"], "meta_file": meta_file}}, "test")
    if 1 in data.labels:
        name = data.filenames[data.labels.index(1)]
        raise UserError(f"{meta_file}: {name} is defective (label 1); a threshold comes from normal images only")
    known = set(build_dataset(dataset, "train").filenames)
    if seen := [name for name in data.filenames if name in known]:
        raise UserError(f"{meta_file}: {seen[0]} is a training image; a threshold comes from images that training has not seen")
    return data


def choose_score(config: EasyDict, score: str | None) -> str:
    """Raises UserError for a score that an evaluation would not write."""
    known = score_columns(config.evaluator.metrics)
    if score is not None and score not in known:
        raise UserError(f"--score {score}: evaluator.metrics has the image scores {', '.join(known) or '(none)'}; add it there")
    return score or headline_score(config.evaluator.metrics, config.evaluator.key_metric) or "max"


def score_images(
    predictor: Predictor, data: ImageDataset, config: EasyDict, min_area: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Score and level (see region_level) of each image, N each, and the median of the maps. UserError for an unreadable image."""
    names = enumerate(zip(data.filenames, data.clsnames, strict=True))
    items = (Item(name, partial(data.read_rgb, index), clsname) for index, (name, clsname) in names)
    scores, levels, medians = [], [], []
    with tqdm(total=len(data), desc="calibrate", leave=False, disable=None) as bar:
        for batch in predict_batches(predictor, items, config.dataset.batch_size, max(1, config.dataset.workers)):
            for result in batch:
                if result.error is not None:
                    raise UserError(f"{result.file}: {result.error}")
                scores.append(result.score)
                levels.append(region_level(result.anomaly_map, min_area, result.inspected))
                shape = result.anomaly_map.shape
                inside = np.ones(shape, bool) if result.inside is None else inside_at(result.inside, shape)
                medians.append(np.median(result.anomaly_map[inside]))
            bar.update(len(batch))
    return np.array(scores), np.array(levels), float(np.median(medians))


def warn_of_few_images(calibration: Calibration, clsnames: set[str]) -> None:
    """A line for each class, of `clsnames`, that has too few images or none."""
    rate = calibration.false_alarm_rate
    needed = images_needed(rate)
    for name, threshold in {**calibration.classes, POOLED: calibration.pooled}.items():
        if threshold.images < needed:
            few = f"{threshold.images} images are too few for a false-alarm rate of {100 * rate:g} %"
            more = "more photographs, or a training with a larger dataset.holdout"
            log.warning("%s: %s: the threshold is their largest score, %d are needed: %s", name, few, needed, more)
    for name in sorted(clsnames - calibration.classes.keys()):
        log.warning("%s: no image, so the class has no threshold of its own", name)


def rates_on_test(name: str, threshold: Threshold, calibration: Calibration, test: Scores) -> Rates:
    """What a class's threshold, or the one of all classes, does on the test images that it is for."""
    chosen = np.full(len(test.labels), True) if threshold is calibration.pooled else test.clsnames == name
    return rates_at(threshold.threshold, test.scores[calibration.score][chosen], test.labels[chosen])


def warn_of_contradictions(calibration: Calibration, test: Scores) -> None:
    """A line for each threshold whose false alarms on test/good lie outside of what it states."""
    for name, threshold in [*calibration.classes.items(), (POOLED, calibration.pooled)]:
        rates, (low, high) = rates_on_test(name, threshold, calibration, test), threshold.false_alarm_rate
        found = binomial_interval(rates.false_alarms, rates.good) if rates.good else (low, high)
        if found[0] > high or found[1] < low:
            log.warning(
                "%s: %s false alarms on test/good contradict the stated %s: the calibration images are not like "
                "those of the test; calibrate with other normal images (--meta_file)",
                *(name, share(rates.false_alarms, rates.good), percentages((low, high))),
            )


def read_test_scores(folder: Path, checkpoint: Path, calibration: Calibration) -> Scores | None:
    """The test scores of this checkpoint in the result folder; None: there are none."""
    if not (folder / "scores.csv").is_file():
        return None
    result = read_result(folder)
    same = Path(result.run.get("checkpoint") or "").resolve() == checkpoint.resolve()
    complete = same and result.run.get("epoch") == calibration.epoch and calibration.score in result.scores.scores
    return result.scores if complete else None


def format_thresholds(calibration: Calibration, test: Scores | None) -> str:
    """A row for each class, sorted, and one for the threshold of all classes."""
    rows = []
    for name, threshold in [*calibration.classes.items(), (POOLED, calibration.pooled)]:
        limits = f"{threshold.threshold:.5g}", f"{threshold.pixel_threshold:.5g}"
        cells = [name, *limits, str(threshold.images), percentages(threshold.false_alarm_rate)]
        if test:
            rates = rates_on_test(name, threshold, calibration, test)
            interval = percentages(binomial_interval(rates.false_alarms, rates.good)) if rates.good else "–"
            cells += [share(rates.false_alarms, rates.good), interval, share(rates.found, rates.defective)]
        rows.append(cells)
    return align_table(HEADER if test else HEADER[:5], rows)
