"""What prediction writes into its folder, so that a run that was killed goes on where it was.

scores.csv or scores.jsonl   a line an image, appended batch by batch: file, score, decision, latency_ms
pictures/<file>.jpg          image and heat map side by side
maps/<file>.npy              the anomaly map at the image's size, float32
errors.csv                   the images of the last run that have no score, and why
predict.json                 what the scores are of: nothing else is added to them
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
from utils.files import write_atomically, write_text
from utils.predict.batches import Failed, Predicted
from utils.predict.predictor import resize_map
from utils.report.drawing import heat_map, normalise, save_picture

PICTURES, MAPS = "pictures", "maps"
COLUMNS = ("file", "score", "decision", "latency_ms")
LONGEST = 200  # bytes of a name, which gets an ending and a prefix: file systems take 255
LABELS = {  # the settings that scores in one file share, in the words of the message
    "sha256": "checkpoint",
    "score": "image score",
    "threshold": "threshold",
    "format": "format",
    "folder": "folder of images",
}


class Output:
    """The folder of a prediction. `done`: the files that have a score; `folder`: what their names are relative to."""

    def __init__(self, out: str | Path, settings: dict[str, Any]) -> None:
        """Begin the folder, or go on with it: a line that was not finished is dropped.

        settings: a value for each of LABELS, and others to be noted. Raises UserError where the folder was begun with others.
        """
        self.out = Path(out)
        self.format: str = settings["format"]
        self.scores = self.out / f"scores.{self.format}"
        self.folder = self.begin(settings)
        self.done = self.go_on()
        for leftover in [path for kind in (PICTURES, MAPS) for path in (self.out / kind).rglob(".*.tmp")]:
            leftover.unlink()  # half a file of a run that was killed

    def begin(self, settings: dict[str, Any]) -> Path | None:
        path = self.out / "predict.json"
        try:
            was = json.loads(path.read_text(encoding="utf-8"))
            for key, label in LABELS.items():
                same = is_below(settings[key], was[key]) if key == "folder" else was[key] == settings[key]
                if not same:
                    what = f"holds scores of another {label} ({was[key]}, not {settings[key]})"
                    raise UserError(f"{self.out}: {what}; choose another --out, or remove it")
            settings = was
        except FileNotFoundError:
            if self.scores.exists():
                raise UserError(f"{self.scores}: was not written by tools/predict.py; choose another --out") from None
            write_text(path, json.dumps(settings, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: not what tools/predict.py writes; choose another --out, or remove it") from None
        return Path(settings["folder"]) if settings["folder"] else None

    def go_on(self) -> set[str]:
        try:
            data = self.scores.read_bytes() if self.scores.exists() else b""
            whole = end_of_lines(data, quotes=self.format == "csv")
            if whole < len(data):
                os.truncate(self.scores, whole)
        except OSError as error:
            raise UserError(f"{self.scores}: cannot be used ({error.strerror})") from None
        if whole == 0 and self.format == "csv":
            self.write(",".join(COLUMNS) + "\n")
            return set()
        text = data[:whole].decode("utf-8", "surrogateescape")
        try:
            if self.format == "csv":
                return {row[0] for row in csv.reader(io.StringIO(text, newline=""))} - {COLUMNS[0]}
            return {json.loads(line)["file"] for line in text.split("\n")[:-1]}
        except (csv.Error, IndexError, KeyError, TypeError, ValueError):
            raise UserError(f"{self.scores}: a line is not what tools/predict.py writes; choose another --out") from None

    def add(self, results: Sequence[Predicted], threshold: float | None) -> None:
        """Append the lines of a batch, in one write."""
        lines = []
        for result in results:
            decision = None if threshold is None else "defective" if result.score > threshold else "good"
            score, latency = f"{result.score:.8g}", f"{1000 * result.latency:.1f}"
            if self.format == "csv":
                lines.append(",".join((quoted(result.file), score, decision or "", latency)))
            else:
                values = (result.file, float(score), decision, float(latency))
                lines.append(json.dumps(dict(zip(COLUMNS, values, strict=True))))
            self.done.add(result.file)
        if lines:
            self.write("\n".join(lines) + "\n")

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        try:
            with open(self.scores, "ab", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
        except OSError as error:
            raise UserError(f"{self.scores}: cannot be written ({error.strerror})") from None

    def save_picture(self, result: Predicted, scale: Sequence[float] | None) -> None:
        """Image and heat map side by side; scale: the lowest and the highest value of its colours, None: the map's own."""
        low, high = scale or (float(result.anomaly_map.min()), float(result.anomaly_map.max()))
        normalised = resize_map(normalise(result.anomaly_map, low, high), result.picture.shape[:2])
        both = np.hstack([result.picture, heat_map(result.picture, normalised)])
        save_picture(self.out / PICTURES / own_name(result.file, ".jpg"), both)

    def save_map(self, result: Predicted) -> None:
        anomaly_map = resize_map(result.anomaly_map, result.size)  # h x w
        write_atomically(self.out / MAPS / own_name(result.file, ".npy"), lambda file: np.save(file, anomaly_map))

    def save_errors(self, errors: Sequence[Failed]) -> Path:
        """Write errors.csv, or remove an earlier run's where there are none; returns its path."""
        path = self.out / "errors.csv"
        if errors:
            lines = ["file,error", *(f"{quoted(error.file)},{quoted(error.error)}" for error in errors)]
            data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
            write_atomically(path, lambda file: file.write(data))
        else:
            path.unlink(missing_ok=True)
        return path


def is_below(folder: str | None, of: str | None) -> bool:
    """Whether `folder` is `of` or lies in it; for cameras both are None."""
    if folder is None or of is None:
        return folder is of
    return Path(of) in (Path(folder), *Path(folder).parents)


def end_of_lines(data: bytes, quotes: bool) -> int:
    """The length of the lines that are whole; with `quotes` a line may hold line feeds between quotation marks."""
    end = data.rfind(b"\n") + 1
    while quotes and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def quoted(text: str) -> str:
    """A field of a CSV file."""
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def own_name(file: str, ending: str) -> PurePosixPath:
    """A path for what belongs to an image: its whole name, so that no two share one, cut where a file system does not take it."""
    path = PurePosixPath(file)
    name = os.fsencode(path.name)
    if len(name) > LONGEST:
        name = name[: LONGEST // 2] + b"~" + hashlib.sha256(name).hexdigest()[:32].encode()
    return path.with_name(os.fsdecode(name) + ending)
