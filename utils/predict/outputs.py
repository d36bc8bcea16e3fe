"""The folder that prediction writes; a run that was killed continues from it.

scores.csv or scores.jsonl   a line an image, appended batch by batch: file, score, decision, latency_ms
pictures/<file>.jpg          image and heat map side by side
maps/<file>.npy              the anomaly map at the image's size, float32
errors.csv                   the images of the last run that have no score, and why
predict.json                 the settings that all scores share
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import from_cell, open_to_append, to_cell, write_atomically, write_below, write_text
from utils.predict.batches import Result
from utils.predict.predictor import resize_map
from utils.reading import parse_json, read_bytes
from utils.report.drawing import heat_map, normalise, save_picture

COLUMNS = ("file", "score", "decision", "latency_ms")
MAX_NAME = 200  # bytes; file systems take 255, and a name gets an ending and a prefix
LABELS = {  # the settings that scores in one file share, as error messages call them
    "sha256": "checkpoint",
    "score": "image score",
    "threshold": "threshold",
    "format": "format",
    "folder": "folder of images",
}


class Output:
    """The folder of a prediction. `done`: the files that have a score; `folder`: their names are relative to it."""

    def __init__(self, out: str | Path, settings: dict[str, Any]) -> None:
        """Start the folder or continue it, without a line that was cut. UserError if it was started with other settings.

        settings: a value for each of LABELS; predict.json holds other entries too.
        """
        self.out = Path(out)
        self.format: str = settings["format"]
        self.scores = self.out / f"scores.{self.format}"
        folder = self._saved_settings(settings)["folder"]
        self.folder = Path(folder) if folder else None  # None for a camera
        self.done = self._read_done()
        for leftover in [path for kind in ("pictures", "maps") for path in (self.out / kind).rglob(".*.tmp")]:
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

    def _read_done(self) -> set[str]:
        """The files in the score file, which is started if it is new; a line that was cut is removed."""
        if self.scores.is_symlink():
            raise UserError(f"{self.scores}: is a link; remove it")
        try:
            data = read_bytes(self.scores) if self.scores.exists() else b""
            length = complete_length(data, quotes=self.format == "csv")
            if length < len(data):
                os.truncate(self.scores, length)
        except OSError as error:
            raise UserError(f"{self.scores}: cannot be used ({error.strerror})") from None
        if length == 0 and self.format == "csv":
            self._append(",".join(COLUMNS) + "\n")
        text = data[:length].decode("utf-8", "surrogateescape")
        try:
            if self.format == "csv":
                return {from_cell(row[0]) for row in csv.reader(io.StringIO(text, newline=""))} - {COLUMNS[0]}
            return {parse_json(line)["file"] for line in text.split("\n")[:-1]}
        except (csv.Error, IndexError, KeyError, TypeError, ValueError):
            raise UserError(f"{self.scores}: a line was not written by tools/predict.py; choose another --out") from None

    def add(self, results: Sequence[Result], threshold: float | None) -> None:
        """Append the lines of a batch, in one write."""
        lines = []
        for result in results:
            decision = None if threshold is None else "defective" if result.score > threshold else "good"
            score, latency = f"{result.score:.8g}", f"{1000 * result.latency:.1f}"
            if self.format == "csv":
                line = ",".join((to_cell(result.file), score, decision or "", latency))
            else:
                values = (result.file, float(score), decision, float(latency))
                line = json.dumps(dict(zip(COLUMNS, values, strict=True)))
            lines.append(f"{line}\n")
            self.done.add(result.file)
        if lines:
            self._append("".join(lines))

    def _append(self, text: str) -> None:
        try:
            with open_to_append(self.scores) as file:
                file.write(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise UserError(f"{self.scores}: cannot be written ({error.strerror})") from None

    def save_picture(self, result: Result, scale: Sequence[float] | None) -> None:
        """Image and heat map side by side; scale: lowest and highest value of the colours, None: the map's own."""
        low, high = scale or (float(result.anomaly_map.min()), float(result.anomaly_map.max()))
        normalised = resize_map(normalise(result.anomaly_map, low, high), result.picture.shape[:2])
        both = np.hstack([result.picture, heat_map(result.picture, normalised)])
        save_picture(self.out, "pictures" / unique_name(result.file, ".jpg"), both)

    def save_map(self, result: Result) -> None:
        anomaly_map = resize_map(result.anomaly_map, result.size)  # h x w
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
