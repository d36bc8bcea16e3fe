"""What a result folder says: its files read and checked, whichever are there."""

import csv
import io
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator

from utils.errors import UserError
from utils.evaluation.calibration import Calibration, calibration_of
from utils.evaluation.evaluate import DEFECT, GALLERY, INTERVALS, REGION_RATES, REGIONS
from utils.evaluation.region_rates import RegionRates, read_region_areas, read_region_rates
from utils.evaluation.results import AGAIN, Results, number, read_json, read_metrics, read_run
from utils.files import from_cell
from utils.reading import read_text

Number = Annotated[float, BeforeValidator(number)]


@dataclass
class Scores:
    """scores.csv: a test image a line."""

    filenames: list[str]  # N
    clsnames: np.ndarray  # N texts
    labels: np.ndarray  # N of {0, 1}
    scores: dict[str, np.ndarray]  # by score name, N floats
    defects: np.ndarray | None = None  # N, % of the image that the mask marks; None: not known

    def of(self, clsname: str, score: str) -> tuple[np.ndarray, np.ndarray]:
        """The scores and the labels of a class's images."""
        chosen = self.clsnames == clsname
        return self.scores[score][chosen], self.labels[chosen]


class Image(BaseModel, extra="forbid"):
    """An image of the gallery."""

    filename: str
    label: int
    score: Number
    rank: int  # from 1 for the most anomalous of its class
    pictures: dict[str, str]  # file names: "image", "map" and, where there is one, "mask"


class GalleryClass(BaseModel):
    good: int  # images of the class in the test set
    defective: int
    picks: dict[str, list[int]]  # places in Gallery.images


class Gallery(BaseModel):
    """report_gallery/gallery.json, as utils.report.gallery writes it."""

    score: str
    low: Number  # of the scale that all heat maps have
    high: Number
    classes: dict[str, GalleryClass]
    images: list[Image]


@dataclass
class Result:
    """A result folder. A file that is not there is None, or empty."""

    folder: Path
    metrics: Results = field(default_factory=lambda: Results([], {}, []))
    intervals: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # value, low, high of each that has them
    scores: Scores | None = None
    run: dict[str, Any] = field(default_factory=dict)
    gallery: Gallery | None = None
    region_rates: dict[str, RegionRates] = field(default_factory=dict)  # by class
    region_areas: dict[int, np.ndarray] = field(default_factory=dict)  # in %, of good (0) and of defective (1) images
    calibration: Calibration | None = None  # of the checkpoint, where it still lies where it was evaluated


def read_result(folder: str | Path) -> Result:
    """Raises UserError if the folder is none, holds no result, or naming the file that cannot be read as what it should be."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name the folder that evaluation wrote, evaluator.save_dir")
    readers = {
        "metrics": (read_metrics, folder / "metrics.json"),
        "intervals": (read_intervals, folder / INTERVALS),
        "scores": (read_scores, folder / "scores.csv"),
        "run": (read_run, folder / "run.json"),
        "region_rates": (read_region_rates, folder / REGION_RATES),
        "region_areas": (read_region_areas, folder / REGIONS),
        "gallery": (read_gallery, folder / GALLERY / "gallery.json"),
    }
    there = {name: (read, path) for name, (read, path) in readers.items() if path.exists()}
    for _, path in there.values():
        check_own(path, folder)
    result = Result(folder, **{name: read(path) for name, (read, path) in there.items()})
    if result.scores is None and not result.metrics.columns:
        raise UserError(f"{folder}: holds neither metrics.json nor scores.csv; evaluate with -e to write them")
    result.calibration = find_calibration(result.run)
    return result


def check_own(path: Path, folder: Path) -> None:
    """Raises UserError for a link: what a report shows must lie in its folder."""
    if os.path.realpath(path) != os.path.join(os.path.realpath(folder), path.relative_to(folder)):
        raise UserError(f"{path}: is a link to another file, which a report does not show; {AGAIN}")


def find_calibration(run: dict[str, Any]) -> Calibration | None:
    checkpoint = run.get("checkpoint")
    if not isinstance(checkpoint, str) or not Path(checkpoint).is_file():
        return None
    calibration = calibration_of(checkpoint)
    return calibration if calibration and calibration.epoch == run.get("epoch") else None


def read_intervals(path: Path) -> dict[str, tuple[float, float, float]]:
    """Of each key of intervals.json that has numbers: value, low and high."""
    try:
        there = {key: found for key, found in read_json(path).items() if found is not None}
        return {key: (number(found["value"]), number(found["low"]), number(found["high"])) for key, found in there.items()}
    except (KeyError, TypeError):
        raise UserError(f"{path}: does not hold value, low and high of each metric; {AGAIN}") from None


def read_scores(path: Path) -> Scores:
    filenames, clsnames, labels, rows = [], [], [], []
    try:
        with io.StringIO(read_text(path, errors="surrogateescape"), newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header[:3] != ["filename", "clsname", "label"]:
                raise UserError(f"{path}: the first line must begin filename,clsname,label; {AGAIN}")
            for row in reader:
                scores = [float(value) for value in row[3:]]
                if len(row) != len(header) or row[2] not in ("0", "1") or not all(map(math.isfinite, scores)):
                    raise ValueError("not a name, a class, a label 0 or 1 and finite scores")
                filenames.append(from_cell(row[0]))
                clsnames.append(from_cell(row[1]))
                labels.append(int(row[2]))
                rows.append(scores)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {len(labels) + 2}: {error}; {AGAIN}") from None
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(header) - 3)
    columns = dict(zip(header[3:], values.T, strict=True))
    defects = columns.pop(DEFECT, None)
    return Scores(filenames, np.array(clsnames, dtype=object), np.array(labels, dtype=np.int64), columns, defects)


def read_gallery(path: Path) -> Gallery:
    """Raises UserError naming gallery.json or the picture that is missing."""
    content = read_json(path)
    try:
        gallery = Gallery.model_validate(content)
        shown = {place for entry in gallery.classes.values() for pick in entry.picks.values() for place in pick}
        pictures = [image.pictures for image in gallery.images]
        paths = [path.parent / name for files in pictures for name in files.values()]
        complete = shown <= set(range(len(pictures))) and all({"image", "map"} <= files.keys() for files in pictures)
        if not complete or any(picture.parent != path.parent for picture in paths):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"{path}: not a gallery that this version writes; {AGAIN}") from None
    for picture in paths:
        if not os.path.isfile(picture):
            raise UserError(f"{picture}: this picture of the gallery is missing; {AGAIN}")
        check_own(picture, path.parents[1])
    return gallery
