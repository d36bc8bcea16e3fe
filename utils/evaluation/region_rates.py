"""What calibrated pixel thresholds do to a test set: each region, and rates by class."""

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.evaluation.calibration import Calibration, binomial_interval
from utils.evaluation.evaluate import REGION_RATES, REGIONS, Evaluation
from utils.evaluation.regions import find_regions
from utils.evaluation.results import AGAIN, align_table, percentages, read_json, share
from utils.files import to_cell, write_text
from utils.reading import read_text

COLUMNS = ("filename", "clsname", "label", "x", "y", "width", "height", "percent", "peak", "mean", "on_defect")
HEADER = ("class", "good with a region", "(95 %)", "defects found", "pixel precision", "pixel recall")


@dataclass
class RegionRates:
    """Counts of a class: images, defects (connected pieces of masks) and pixels."""

    good: int = 0  # images
    good_with_region: int = 0
    defects: int = 0
    defects_found: int = 0  # a region overlaps them
    region_pixels: int = 0  # of images whose defects are marked, and of good ones
    defect_pixels: int = 0
    common_pixels: int = 0

    def __add__(self, other: "RegionRates") -> "RegionRates":
        return RegionRates(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def cells(self) -> list[str]:
        """As in a table, below HEADER's further titles."""
        interval = percentages(binomial_interval(self.good_with_region, self.good)) if self.good else "–"
        counts = share(self.good_with_region, self.good), interval, share(self.defects_found, self.defects)
        regions = self.region_pixels if self.defects else 0  # without a mask no region can be right
        return [*counts, *(share(self.common_pixels, total).split("= ")[-1] for total in (regions, self.defect_pixels))]


def measure_regions(folder: str | Path, evaluation: Evaluation, calibration: Calibration) -> dict[str, RegionRates]:
    """Write regions.csv, a line a region, and region_rates.json into the result folder; returns the rates by class, sorted.

    A class's own pixel threshold decides, else the pooled one.
    """
    rates: dict[str, RegionRates] = {}
    lines = [COLUMNS]
    for position, (name, file) in enumerate(zip(evaluation.clsnames, evaluation.filenames, strict=True)):
        threshold = calibration.classes.get(name, calibration.pooled).pixel_threshold
        inspected = evaluation.inspected(position)
        numbers, regions = find_regions(evaluation.map(position), threshold, calibration.min_area, inspected)
        mask, label = evaluation.mask(position), int(evaluation.labels[position])
        rates[name] = rates.get(name, RegionRates()) + count(numbers, mask, label)
        on_defect = set(numbers[mask > 0].tolist())
        for number, region in enumerate(regions, start=1):
            box = (region.x, region.y, region.width, region.height)
            values = (f"{value:.8g}" for value in (100 * region.share, region.peak, region.mean))
            lines.append((to_cell(file), to_cell(name), *map(str, (label, *box)), *values, str(int(number in on_defect))))
    rates = dict(sorted(rates.items()))
    write_text(Path(folder) / REGIONS, "".join(",".join(line) + "\n" for line in lines))
    content = {"false_alarm_rate": calibration.false_alarm_rate, "classes": {name: asdict(r) for name, r in rates.items()}}
    write_text(Path(folder) / REGION_RATES, json.dumps(content, indent=1) + "\n")
    return rates


def count(numbers: np.ndarray, mask: np.ndarray, label: int) -> RegionRates:
    """Of one image. numbers: HxW, not 0 in regions; mask: HxW of {0, 1}; label: 1 for a defective image."""
    if label == 0:
        return RegionRates(good=1, good_with_region=int(numbers.any()), region_pixels=int(np.count_nonzero(numbers)))
    if not mask.any():
        return RegionRates()  # where its defects are is not known
    defects, pieces = cv2.connectedComponents(mask, connectivity=8)
    inside = (numbers > 0) & (mask > 0)
    return RegionRates(
        defects=defects - 1,
        defects_found=len(np.unique(pieces[inside])),
        region_pixels=int(np.count_nonzero(numbers)),
        defect_pixels=int(np.count_nonzero(mask)),
        common_pixels=int(np.count_nonzero(inside)),
    )


def format_rates(rates: dict[str, RegionRates]) -> str:
    """A row for each class, and one for all together."""
    together = sum(rates.values(), RegionRates())
    return align_table(HEADER, [[name, *found.cells()] for name, found in [*rates.items(), ("all classes", together)]])


def read_region_rates(path: Path) -> dict[str, RegionRates]:
    """By class. Raises UserError naming a file that does not hold them."""
    try:
        classes = read_json(path)["classes"]
        rates = {name: RegionRates(**found) for name, found in classes.items()}
        if any(not isinstance(value, int) or value < 0 for found in rates.values() for value in asdict(found).values()):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: does not hold the regions' rates of each class; {AGAIN}") from None
    return rates


def read_region_areas(path: Path) -> dict[int, np.ndarray]:
    """The areas of the regions in regions.csv, in % of the image: of good and of defective images. UserError names the file."""
    areas: dict[int, list[float]] = {0: [], 1: []}
    try:
        with io.StringIO(read_text(path, errors="surrogateescape"), newline="") as file:
            for row in csv.DictReader(file):
                areas[int(row["label"])].append(float(row["percent"]))
        found = {label: np.array(values, np.float64) for label, values in areas.items()}
        if not all(np.isfinite(values).all() for values in found.values()):
            raise ValueError
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path}: does not hold a region a line; {AGAIN}") from None
    return found
