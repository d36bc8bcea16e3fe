"""VisA: as it is published, with its table of splits, or as its authors' preparation script lays it out."""

import csv
from pathlib import Path

from datasets.lists import record, records_of_class, subfolders
from datasets.prepare.scan import Found
from datasets.prepare.trees import has_class_with
from utils.errors import UserError

SPLITS = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")


def is_visa(root: Path) -> bool:
    return (root / SPLITS).is_file() or has_class_with(root / "1cls", "train/good")


def read_visa(root: Path) -> Found:
    """From the table if it is there, else from the folders 1cls/CLASS."""
    if (root / SPLITS).is_file():
        return _from_table(root)
    found = Found(root)
    for clsname in subfolders(root / "1cls"):
        train, test = records_of_class(root, f"1cls/{clsname}", clsname)
        found.train += train
        found.test += test
    return found


def _from_table(root: Path) -> Found:
    path = root / SPLITS
    found = Found(root)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: its first line must name the columns {', '.join(COLUMNS)}")
        for number, row in enumerate(rows, 2):
            if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
                raise UserError(f"{path}:{number}: split must be train or test, label must be normal or anomaly")
            line = record(row["image"], int(row["label"] == "anomaly"), row["object"], row["mask"])
            (found.train if row["split"] == "train" else found.test).append(line)
    return found
