"""Leave out what cannot be used, split what is not split yet, and write the lists."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from datasets.images import ImageReader
from datasets.lists import Record, read_list, write_list
from datasets.prepare.checks import Checked, read_joined_mask
from datasets.prepare.near_duplicates import group, name_group, represent, split
from datasets.prepare.scan import Scan, by_class
from utils.errors import UserError
from utils.files import write_atomically


def only_classes(scan: Scan, classes: list[str]) -> Scan:
    """Keep only these classes. UserError for a class that does not exist."""
    known = by_class(scan.records())
    for clsname in classes:
        if clsname not in known:
            raise UserError(f"there is no class '{clsname}' in {scan.root}: its classes are {', '.join(sorted(known))}")
    return scan.map(lambda record: record if record["clsname"] in classes else None)


def leave_out(scan: Scan, checked: dict[str, Checked]) -> Scan:
    """Drop images that cannot be used; one whose mask cannot be used stays as a defective image without mask."""

    def usable(record: Record) -> Record | None:
        result = checked[record["filename"]]
        if result.problem is not None:
            return None
        return {key: value for key, value in record.items() if key != "maskname" or result.mask_problem is None}

    return scan.map(usable)


def earlier_groups(out: Path) -> list[set[str]]:
    """The groups of near-duplicates in the test list and in the training list of an earlier run; empty where there is none."""
    groups: list[set[str]] = []
    for name in ("test.json", "train.json"):
        groups.append(set())
        with suppress(UserError):  # none, or one that this run replaces
            groups[-1].update(line["group"] for line in read_list(out / name) if "group" in line)
    return groups


def split_good(scan: Scan, checked: dict[str, Checked], share: float, seed: int, earlier: Sequence[set[str]] = ()) -> Scan:
    """Move about `share` of each class's unsplit images to test and the rest to training, near-duplicates to the same side.

    Their content decides, so what was test stays test when images are added; `earlier`: as `earlier_groups` has them. A line's
    `group` is that of its near-duplicates.
    """
    train, test, near_duplicates = list(scan.train), list(scan.test), {}
    for clsname, records in by_class(scan.unsplit).items():
        results = [checked[line["filename"]] for line in records]
        groups = group(np.stack([result.fingerprint for result in results]))
        representatives = represent(groups, [result.digest for result in results], earlier)
        for line, digest, tested in zip(records, representatives, split(representatives, share, seed), strict=True):
            (test if tested else train).append(line | {"group": name_group(digest)})
        near_duplicates[clsname] = sum(size for size in np.unique_counts(groups).counts if size > 1)
    return replace(scan, train=train, test=test, unsplit=[], near_duplicates=near_duplicates)


def write(scan: Scan, out: Path, per_class_dir: str | None = None, dry_run: bool = False) -> list[Path]:
    """Write joined masks, then train.json, test.json and, if images are held out, validation.json; returns the lists' paths.

    `per_class_dir`: also out/NAME/test_CLASS.json; `dry_run` writes nothing. UserError, before anything is written, where no
    image is left to train with.
    """
    if not scan.train:
        raise UserError("no image is left for train.json: nothing is written")
    for maskname in () if dry_run else {line["maskname"] for line in scan.test if line.get("maskname") in scan.joined}:
        mask = read_joined_mask(ImageReader(str(scan.root)), scan.joined[maskname]) * np.uint8(255)
        png = cv2.imencode(".png", mask)[1].tobytes()
        write_atomically(scan.root / maskname, lambda file, png=png: file.write(png))
    lists = {out / "train.json": scan.train, out / "test.json": scan.test, out / "validation.json": scan.validation}
    if per_class_dir:
        for clsname, records in by_class(scan.test).items():
            # The published lists of single classes have no clsname either: the class is in the path.
            nameless = [{key: value for key, value in line.items() if key != "clsname"} for line in records]
            lists[out / per_class_dir / f"test_{clsname}.json"] = nameless
    lists = {path: records for path, records in lists.items() if records}
    for path, records in () if dry_run else lists.items():
        write_list(sorted(records, key=lambda line: (line.get("clsname", ""), line["filename"])), path)
    return list(lists)
