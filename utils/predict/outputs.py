"""The folder that prediction writes; a run that was killed continues from it.

scores.csv or scores.jsonl     a line an image, appended batch by batch: see COLUMNS
regions.csv or regions.jsonl   a line a region: see REGION_COLUMNS
pictures/<file>.jpg            image and heat map side by side, the regions outlined, with score and decision
masks/<file>.png               the regions at the image's size, 0 or 255
maps/<file>.npy                the anomaly map at the image's size, float32
coco.json                      the regions as annotations in COCO's format
errors.csv                     the images of the last run that have no score, and why
predict.json                   the settings that all scores share
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from utils.errors import UserError
from utils.evaluation.calibration import finite
from utils.evaluation.decisions import Decision, Rule
from utils.files import from_cell, open_to_append, to_cell, write_atomically, write_below, write_text
from utils.predict.batches import Result
from utils.predict.pictures import draw
from utils.reading import check_text, parse_json, read_bytes
from utils.report.drawing import save_picture

COLUMNS = ("file", "score", "decision", "ratio", "p", "regions", "largest_percent", "latency_ms")
REGION_COLUMNS = ("file", "region", "x", "y", "width", "height", "area", "percent", "peak", "mean")  # pixels of the image
MAX_NAME = 200  # bytes; file systems take 255, and a name gets an ending and a prefix
LABELS = {  # the settings that scores in one file share, as error messages call them
    "sha256": "checkpoint",
    "score": "image score",
    "threshold": "threshold",
    "pixel_threshold": "pixel threshold",
    "min_area": "smallest region",
    "format": "format",
    "folder": "folder of images",
}


@dataclass(frozen=True)
class Scored:
    """What a line of the table of scores says."""

    file: str
    score: float
    verdict: str | None  # as a Decision has it


class Output:
    """The folder of a prediction. `done`: the files that have a score; `folder`: their names are relative to it."""

    def __init__(self, out: str | Path, settings: dict[str, Any]) -> None:
        """Start the folder or continue it, without a line that was cut. UserError if it was started with other settings.

        settings: a value for each of LABELS; predict.json holds other entries too.
        """
        self.out = Path(out)
        self.format: str = settings["format"]
        self.scores = self.out / f"scores.{self.format}"
        self.regions = self.out / f"regions.{self.format}"
        folder = self._saved_settings(settings)["folder"]
        self.folder = Path(folder) if folder else None  # None for a camera
        self.has_regions = settings["pixel_threshold"] is not None
        lines = scored(self.scores, self._read(self.scores, COLUMNS))
        self.verdicts = Counter(line.verdict for line in lines if line.verdict)  # of all lines
        self.done = {line.file for line in lines}
        self.earlier_scores = [line.score for line in lines]  # those of earlier runs, in order
        if self.has_regions:
            self._drop_regions_of_unfinished()
        for leftover in [path for kind in ("pictures", "masks", "maps") for path in (self.out / kind).rglob(".*.tmp")]:
            leftover.unlink()  # half a file of a run that was killed

    def _saved_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The content of predict.json, which must fit `settings`; they are written if the folder is new."""
        path = self.out / "predict.json"
        try:
            saved = parse_json(read_bytes(path))
            for key, label in LABELS.items():
                given, known = settings[key], saved[key]
                is_below = key == "folder" and given and known and Path(known) in Path(given).parents  # None for a camera
                if given != known and not is_below:
                    what = f"holds scores of another {label} ({known}, not {given})"
                    raise UserError(f"{self.out}: {what}; choose another --out, or remove it")
            return saved
        except FileNotFoundError:
            if self.scores.exists():
                raise UserError(f"{self.scores}: was not written by tools/predict.py; choose another --out") from None
            write_text(path, json.dumps(settings, indent=1) + "\n")
            return settings
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: not written by tools/predict.py; choose another --out, or remove it") from None

    def _read(self, path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The lines of a table, which is started if it is new; a line that was cut is removed."""
        if path.is_symlink():
            raise UserError(f"{path}: is a link; remove it")
        try:
            data = read_bytes(path) if path.exists() else b""
            length = complete_length(data, quotes=self.format == "csv")
            if length < len(data):
                os.truncate(path, length)
        except OSError as error:
            raise UserError(f"{path}: cannot be used ({error.strerror})") from None
        if length == 0:
            self._append(path, ",".join(columns) + "\n" if self.format == "csv" else "")
        return parse_lines(path, data[:length], columns)

    def _drop_regions_of_unfinished(self) -> None:
        """Remove the regions of images that a run was killed at: they are found again."""
        lines = self._read(self.regions, REGION_COLUMNS)
        kept = [line for line in lines if line["file"] in self.done]
        if len(kept) < len(lines):
            start = ",".join(REGION_COLUMNS) + "\n" if self.format == "csv" else ""
            write_text(self.regions, start + "".join(map(self._line, kept)))

    def add(self, results: Sequence[Result], decisions: Sequence[Decision]) -> None:
        """Append the lines of a batch, its regions first: a line in the table of scores says that an image is done."""
        scores, regions = [], []
        for result, decision in zip(results, decisions, strict=True):
            found = decision.regions
            largest = rounded(100 * found[0].share) if found else 0.0
            known = (None, None) if found is None else (len(found), largest)
            measured = (rounded(result.score), decision.verdict, rounded(decision.ratio), rounded(decision.p), *known)
            values = (result.file, *measured, round(1000 * result.latency, 1))
            scores.append(dict(zip(COLUMNS, values, strict=True)))
            for number, region in enumerate(found or (), start=1):
                box = (region.x, region.y, region.width, region.height, region.area)
                shares = map(rounded, (100 * region.share, region.peak, region.mean))
                regions.append(dict(zip(REGION_COLUMNS, (result.file, number, *box, *shares), strict=True)))
            self.verdicts.update([decision.verdict] if decision.verdict else [])
        for path, lines in ((self.regions, regions), (self.scores, scores)):
            if lines:
                self._append(path, "".join(map(self._line, lines)))
        self.done.update(result.file for result in results)

    def _line(self, values: dict[str, Any]) -> str:
        if self.format == "jsonl":
            return json.dumps(values) + "\n"
        cells = (to_cell(value) if isinstance(value, str) else "" if value is None else str(value) for value in values.values())
        return ",".join(cells) + "\n"

    def _append(self, path: Path, text: str) -> None:
        try:
            with open_to_append(path) as file:
                file.write(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def save_picture(self, result: Result, decision: Decision, rule: Rule) -> None:
        save_picture(self.out, "pictures" / unique_name(result.file, ".jpg"), draw(result, decision, rule))

    def save_mask(self, result: Result, decision: Decision) -> None:
        _, encoded = cv2.imencode(".png", decision.mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])
        write_below(self.out, "masks" / unique_name(result.file, ".png"), lambda file: file.write(encoded.tobytes()))

    def save_map(self, result: Result, anomaly_map: np.ndarray) -> None:
        """anomaly_map: h x w, of the image's size."""
        write_below(self.out, "maps" / unique_name(result.file, ".npy"), lambda file: np.save(file, anomaly_map))

    def save_errors(self, errors: Sequence[Result]) -> Path:
        """Write errors.csv, or remove an earlier run's if there are no errors; returns its path."""
        path = self.out / "errors.csv"
        if errors:
            lines = ["file,error\n", *(f"{to_cell(result.file)},{to_cell(result.error)}\n" for result in errors)]
            data = "".join(lines).encode("utf-8", "surrogateescape")
            write_atomically(path, lambda file: file.write(data))
        else:
            path.unlink(missing_ok=True)
        return path


def rounded(value: float | None) -> float | None:
    """To the eight digits that a float32 has."""
    return None if value is None else float(f"{value:.8g}")


def parse_lines(path: Path, data: bytes, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a table, all of them complete, by column. Raises UserError for one that Output does not write."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        if path.suffix == ".csv":
            rows = csv.reader(io.StringIO(text, newline=""))
            lines = [dict(zip(columns, map(from_cell, row), strict=True)) for row in rows if row != list(columns)]
        else:
            lines = [parse_json(line) for line in text.split("\n")[:-1]]
        return [line for line in lines if line["file"]]
    except (csv.Error, KeyError, TypeError, ValueError):
        raise not_ours(path) from None


def scored(path: Path, lines: Sequence[dict[str, Any]]) -> list[Scored]:
    """The lines of the table of scores `path`. Raises UserError for one that Output does not write."""
    found = []
    try:
        for line in lines:
            file, decision = line["file"], line["decision"]
            score = finite(float(line["score"]) if path.suffix == ".csv" else line["score"])
            if not isinstance(file, str) or decision not in ("good", "defective", "", None):
                raise ValueError
            check_text(file)
            found.append(Scored(file, score, decision or None))
    except (KeyError, TypeError, ValueError):
        raise not_ours(path) from None
    return found


def not_ours(path: Path) -> UserError:
    return UserError(f"{path}: a line was not written by tools/predict.py; choose another --out")


def complete_length(data: bytes, quotes: bool) -> int:
    """The length of the complete lines; with `quotes` a line may hold line feeds between quotation marks."""
    end = data.rfind(b"\n") + 1
    while quotes and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def unique_name(file: str, ending: str) -> PurePosixPath:
    """The path of an image's picture or map: its whole name with `ending`, shortened by a hash if it is very long."""
    path = PurePosixPath(file)
    name = os.fsencode(path.name)
    if len(name) > MAX_NAME:
        name = name[: MAX_NAME // 2] + b"~" + hashlib.sha256(name).hexdigest()[:32].encode()
    return path.with_name(os.fsdecode(name) + ending)
