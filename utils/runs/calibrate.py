"""A whole calibration: a checkpoint's scores of held-out normal images, the thresholds, and what they do to the test set."""

import logging
from collections.abc import Sequence
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
from utils.predict.batches import Failed, predict_batches
from utils.predict.images import read_rgb
from utils.predict.inputs import Item
from utils.predict.predictor import Predictor
from utils.predict.torch_engine import TorchEngine
from utils.report.page import write_report
from utils.report.result_folder import Scores, read_result

HEADER = ("class", "threshold", "held-out", "false alarms", "on test/good", "(95 %)", "defective found")

log = logging.getLogger("uniad")


def calibrate_checkpoint(config: EasyDict, checkpoint: str | Path, rate: float, meta_file: str | None = None) -> str:
    """Write calibration.json beside the checkpoint; returns what to say: a table of thresholds, with rates on the test set.

    rate: of false alarms. The images are those that dataset.holdout kept out of training, or the list `meta_file`. Raises
    UserError where training may have seen them, or where one is not normal.
    """
    if config.dataset.type != "custom":
        raise UserError(f"calibration is for data sets of type custom, dataset.type is {config.dataset.type}")
    engine = TorchEngine(checkpoint, config=config)
    share = of_training(engine.trained).get("holdout", 0) if engine.trained else 0
    plain = to_plain(config.dataset)
    plain["train"]["holdout"] = share  # as this checkpoint was trained
    data = other_images(plain, meta_file) if meta_file else held_out_images(plain, engine.trained, checkpoint)
    scores = score_images(Predictor(engine), data, config)
    pooled, classes = calibrate(scores, data.clsnames, rate)
    calibration = Calibration(
        score=engine.score,
        false_alarm_rate=rate,
        checkpoint=Path(checkpoint).name,
        sha256=file_hash(checkpoint),
        epoch=engine.epoch,
        images=f"normal images of {meta_file}" if meta_file else f"dataset.holdout {share}",
        pooled=pooled,
        classes=classes,
    )
    path = save_calibration(calibration, checkpoint)
    warn(calibration, build_dataset(plain, "train").clsnames)
    folder = Path(config.evaluator.save_dir)
    test = test_scores(folder, Path(checkpoint), calibration)
    lines = [format_thresholds(calibration, test), f"score {engine.score}; written to {path}"]
    if test is None:
        lines.append("for the rates on the test set evaluate this checkpoint with -e, then calibrate again")
    elif (folder / "report.html").is_file():
        lines.append(f"report with the thresholds: {write_report(folder)}")
    return "\n".join(lines)


def of_training(config: dict[str, Any]) -> dict[str, Any]:
    """The data set section as training has it."""
    return {**config["dataset"], **(config["dataset"].get("train") or {})}


def held_out_images(cfg: dict[str, Any], trained: dict[str, Any] | None, checkpoint: str | Path) -> ImageDataset:
    """The images that training left out. cfg: the data set section; trained: the configuration in the checkpoint, or None."""
    instead = "or name a list of other normal images with --meta_file"
    if trained is None:
        raise UserError(f"{checkpoint}: does not say which images it was trained on: train one with dataset.holdout, {instead}")
    if not cfg["train"]["holdout"]:
        raise UserError(
            f"{checkpoint}: was trained with dataset.holdout 0, on all normal images, from which a threshold would be too low: "
            f"train with e.g. dataset.holdout=0.1, {instead}"
        )
    data = build_dataset(cfg, "holdout")
    if not len(data):
        raise UserError(
            f"dataset.holdout {cfg['train']['holdout']} was less than an image of each class: train with more, {instead}"
        )
    return data


def other_images(cfg: dict[str, Any], meta_file: str) -> ImageDataset:
    """The images of a list, none of which is defective or was trained on."""
    data = build_dataset({**cfg, "test": {**cfg["test"], "meta_file": meta_file}}, "test")
    if 1 in data.labels:
        name = data.filenames[data.labels.index(1)]
        raise UserError(f"{meta_file}: {name} is defective (label 1); a threshold comes from normal images only")
    known = set(build_dataset(cfg, "train").filenames)
    if seen := [name for name in data.filenames if name in known]:
        raise UserError(f"{meta_file}: {seen[0]} is a training image; a threshold comes from images that training has not seen")
    return data


def score_images(predictor: Predictor, data: ImageDataset, config: EasyDict) -> np.ndarray:
    """The score of each image, N. Raises UserError for one that cannot be read."""
    folder = Path(config.dataset.image_reader.kwargs.image_dir)
    items = (Item(name, partial(read_rgb, folder / name)) for name in data.filenames)
    scores = []
    with tqdm(total=len(data), desc="calibrate", leave=False, disable=None) as bar:
        for batch in predict_batches(predictor, items, config.dataset.batch_size, max(1, config.dataset.workers)):
            for result in batch:
                if isinstance(result, Failed):
                    raise UserError(f"{result.file}: {result.error}")
                scores.append(result.score)
            bar.update(len(batch))
    return np.array(scores)


def warn(calibration: Calibration, clsnames: Sequence[str]) -> None:
    """A line for each class, of `clsnames`, that has too few images or none."""
    rate = calibration.false_alarm_rate
    needed = images_needed(rate)
    for name, threshold in {**calibration.classes, "all classes": calibration.pooled}.items():
        if threshold.images < needed:
            log.warning(
                "%s: %d images are too few for a false-alarm rate of %g %%: the threshold is their largest score, %d are needed",
                *(name, threshold.images, 100 * rate, needed),
            )
    for name in sorted(set(clsnames) - set(calibration.classes)):
        log.warning("%s: no image, so the class has no threshold of its own", name)


def test_scores(folder: str | Path, checkpoint: Path, calibration: Calibration) -> Scores | None:
    """What evaluation wrote of this checkpoint; None: nothing."""
    if not (Path(folder) / "scores.csv").is_file():
        return None
    result = read_result(folder)
    same = Path(result.run.get("checkpoint") or "").resolve() == checkpoint.resolve()
    is_there = same and result.run.get("epoch") == calibration.epoch and calibration.score in result.scores.scores
    return result.scores if is_there else None


def format_thresholds(calibration: Calibration, test: Scores | None) -> str:
    """A row a class, sorted, and one for the threshold of all classes."""
    rows = [HEADER if test else HEADER[:4]]
    for clsname, threshold in calibration.classes.items():
        rows.append(row(clsname, threshold, test and rates_of(test, calibration.score, threshold, clsname)))
    rows.append(row("all classes", calibration.pooled, test and rates_of(test, calibration.score, calibration.pooled)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = [rows[0], rule, *rows[1:-1], rule, rows[-1]]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in lines
    )


def rates_of(test: Scores, score: str, threshold: Threshold, clsname: str | None = None) -> Rates:
    """Of a class's test images, or of all."""
    chosen = np.full(len(test.labels), True) if clsname is None else test.clsnames == clsname
    return rates_at(threshold.threshold, test.scores[score][chosen], test.labels[chosen])


def row(name: str, threshold: Threshold, rates: Rates | None) -> tuple[str, ...]:
    cells = (name, f"{threshold.threshold:.5g}", str(threshold.images), interval(threshold.false_alarm_rate))
    if rates is None:
        return cells
    seen = interval(binomial_interval(rates.false_alarms, rates.good)) if rates.good else "–"
    return (*cells, share(rates.false_alarms, rates.good), seen, share(rates.found, rates.defective))


def share(count: int, total: int) -> str:
    return f"{count}/{total} = {100 * count / total:.1f} %" if total else "–"


def interval(limits: tuple[float, float]) -> str:
    return f"{100 * limits[0]:.1f}–{100 * limits[1]:.1f} %"
