"""From what was found and checked to lists on disk: what is left out, split and written."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from datasets.images import ImageReader
from datasets.lists import Record, write_list
from datasets.prepare.checks import Checked, read_joined_mask
from datasets.prepare.near_duplicates import group, split
from datasets.prepare.scan import Found, by_class
from datasets.prepare.summary import Notes
from utils.errors import UserError
from utils.files import write_atomically


def problems(found: Found, checked: dict[str, Checked]) -> list[str]:
    """A line for each image and mask that cannot be used, sorted by the image's name."""
    results = [checked[record["filename"]] for record in sorted(found.records(), key=lambda record: record["filename"])]
    return [problem for result in results for problem in (result.problem, result.mask_problem) if problem]


def leave_out(found: Found, checked: dict[str, Checked]) -> Found:
    """Without the images that cannot be used; one whose mask cannot be used stays, as a defective image without mask."""

    def usable(record: Record) -> Record | None:
        result = checked[record["filename"]]
        if result.problem is not None:
            return None
        return {key: value for key, value in record.items() if key != "maskname" or result.mask_problem is None}

    return found.change(usable)


def only_classes(found: Found, classes: list[str]) -> Found:
    """Only these classes; UserError for one that there is not."""
    there = by_class(found.records())
    for clsname in classes:
        if clsname not in there:
            raise UserError(f"there is no class '{clsname}' in {found.root}: its classes are {', '.join(sorted(there))}")
    return found.change(lambda record: record if record["clsname"] in classes else None)


def split_good(found: Found, checked: dict[str, Checked], share: float, seed: int) -> tuple[Found, Notes]:
    """With the images that belong to no side on one: of each class `share` in test, near-duplicates on the same side."""
    train, test = list(found.train), list(found.test)
    notes: Notes = {}
    for clsname, records in by_class(found.unsplit).items():
        groups = group(np.stack([checked[line["filename"]].fingerprint for line in records]))
        for line, tested in zip(records, split(groups, share, seed), strict=True):
            (test if tested else train).append(line)
        together = sum(size for size in np.unique_counts(groups).counts if size > 1)
        notes[clsname] = [f"{together} near-duplicates kept on one side"] if together else []
    return replace(found, train=train, test=test, unsplit=[]), notes


def write(found: Found, out: Path, per_class_dir: str | None = None) -> list[Path]:
    """Write joined masks, then train.json, test.json and, where images are held out, validation.json; returns the lists' paths.

    `per_class_dir`: also out/NAME/test_CLASS.json. UserError where a list that must not be empty is, before anything is written.
    """
    for name, records in (("train", found.train), ("test", found.test)):
        if not records:
            raise UserError(f"no image is left for {name}.json: nothing is written")
    for maskname in {line["maskname"] for line in found.test if line.get("maskname") in found.joined}:
        _write_mask(found.root, maskname, found.joined[maskname])
    lists = {out / f"{name}.json": records for name, records in zip(("train", "test", "validation"), found.lists(), strict=False)}
    if per_class_dir:
        for clsname, records in by_class(found.test).items():
            # as the published lists of single classes: the class is in the path
            nameless = [{key: value for key, value in line.items() if key != "clsname"} for line in records]
            lists[out / per_class_dir / f"test_{clsname}.json"] = nameless
    for path, records in lists.items():
        if records:
            write_list(sorted(records, key=lambda line: (line.get("clsname", ""), line["filename"])), path)
    return [path for path, records in lists.items() if records]


def _write_mask(root: Path, maskname: str, parts: list[str]) -> None:
    mask = read_joined_mask(ImageReader(str(root)), parts) * np.uint8(255)
    write_atomically(root / maskname, lambda file: file.write(cv2.imencode(".png", mask)[1].tobytes()))
