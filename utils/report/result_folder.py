"""The files of a result folder, read and checked. Nothing here imports torch."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.evaluation.calibration import Calibration, calibration_of
from utils.evaluation.results import (
    AGAIN,
    GALLERY,
    INTERVALS,
    Intervals,
    Results,
    number,
    read_intervals,
    read_json,
    read_results,
)


@dataclass
class Scores:
    """scores.csv: a test image a line."""

    clsnames: np.ndarray  # N strings
    labels: np.ndarray  # N of {0, 1}
    scores: dict[str, np.ndarray]  # by score name, N floats

    def of(self, clsname: str, score: str) -> tuple[np.ndarray, np.ndarray]:
        """The scores and the labels of a class's images."""
        chosen = self.clsnames == clsname
        return self.scores[score][chosen], self.labels[chosen]


@dataclass
class Image:
    """An image of the gallery."""

    filename: str
    label: int
    score: float
    rank: int  # from 1 for the most anomalous of its class
    pictures: dict[str, str]  # file names of "image", "map" and, if there is one, "mask"


@dataclass
class GalleryClass:
    good: int  # images of the class in the test set
    defective: int
    picks: dict[str, list[Image]]


@dataclass
class Gallery:
    """report_gallery/gallery.json, as utils.report.gallery writes it."""

    score: str
    low: float  # of the scale that all heat maps share
    high: float
    classes: dict[str, GalleryClass]
    images: list[Image]


@dataclass
class Result:
    """A result folder. A file that is missing is None or empty."""

    folder: Path
    results: Results | None = None
    intervals: Intervals = field(default_factory=dict)
    scores: Scores | None = None
    run: dict[str, Any] = field(default_factory=dict)
    gallery: Gallery | None = None
    calibration: Calibration | None = None  # if the checkpoint is still where it was evaluated


def read_result(folder: str | Path) -> Result:
    """Raises UserError if there is no such folder, if it holds no result, and naming a file with the wrong content."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name the folder that evaluation wrote, evaluator.save_dir")
    readers = {
        "results": ("metrics.json", read_results),
        "intervals": (INTERVALS, read_intervals),
        "scores": ("scores.csv", read_scores),
        "run": ("run.json", read_run),
        "gallery": (f"{GALLERY}/gallery.json", read_gallery),
    }
    found = {name: read(folder / file) for name, (file, read) in readers.items() if (folder / file).exists()}
    if not found.keys() & {"results", "scores"}:
        raise UserError(f"{folder}: holds neither metrics.json nor scores.csv; evaluate with -e to write them")
    return Result(folder, **found, calibration=find_calibration(found.get("run", {})))


def find_calibration(run: dict[str, Any]) -> Calibration | None:
    """The calibration of the evaluated checkpoint and score."""
    checkpoint, score = run.get("checkpoint"), run.get("score")
    if not isinstance(checkpoint, str) or not isinstance(score, str) or not Path(checkpoint).is_file():
        return None
    calibration = calibration_of(checkpoint, score)
    return calibration if calibration and calibration.epoch == run.get("epoch") else None


def read_scores(path: Path) -> Scores:
    clsnames, labels, rows = [], [], []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header[:3] != ["filename", "clsname", "label"]:
                raise UserError(f"{path}: the first line must begin filename,clsname,label; {AGAIN}")
            for row in reader:
                scores = [float(value) for value in row[3:]]
                if len(row) != len(header) or row[2] not in ("0", "1") or not all(map(math.isfinite, scores)):
                    raise ValueError("not a name, a class, a label 0 or 1 and finite scores")
                clsnames.append(row[1])
                labels.append(int(row[2]))
                rows.append(scores)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {len(labels) + 2}: {error}; {AGAIN}") from None
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(header) - 3)
    names = np.array(clsnames, dtype=object)
    return Scores(names, np.array(labels, dtype=np.int64), dict(zip(header[3:], values.T, strict=True)))


def read_run(path: Path) -> dict[str, Any]:
    run = read_json(path)
    for key, kind in (("history", list), ("config", dict), ("versions", dict)):
        if not isinstance(run.get(key) or kind(), kind):
            raise UserError(f"{path}: '{key}' must be a {kind.__name__}; {AGAIN}")
    try:
        for item in run.get("history") or ():
            if not math.isfinite(number(item["epoch"])):
                raise TypeError
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path}: 'history' must hold objects with a number 'epoch'; {AGAIN}") from None
    return run


def read_gallery(path: Path) -> Gallery:
    """Raises UserError naming gallery.json or a picture that is missing."""
    content = read_json(path)
    try:
        images = [Image(**{**image, "score": number(image["score"])}) for image in content["images"]]
        classes = {
            clsname: GalleryClass(
                int(entry["good"]),
                int(entry["defective"]),
                {pick: [images[index] for index in indices] for pick, indices in entry["picks"].items()},
            )
            for clsname, entry in content["classes"].items()
        }
        gallery = Gallery(content["score"], number(content["low"]), number(content["high"]), classes, images)
        if any({"image", "map"} - image.pictures.keys() for image in images):
            raise ValueError
        for picture in (path.parent / name for image in images for name in image.pictures.values()):
            if picture.parent != path.parent:
                raise ValueError
            if not picture.is_file():
                raise UserError(f"{picture}: this picture of the gallery is missing; {AGAIN}")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a gallery that this version writes; {AGAIN}") from None
    return gallery
