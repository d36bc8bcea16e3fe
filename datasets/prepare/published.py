"""How published data sets lie on disk: for each layout a test whether a folder has it, and a reader."""

import csv
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from datasets.lists import image_names, join, lists_from_tree, record, records_of_class, subfolders
from datasets.prepare.scan import Scan
from utils.errors import UserError
from utils.reading import parse_json, read_bytes

VISA_SPLITS = "split_csv/1cls.csv"
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
ELPV_TABLE = "labels.csv"
REAL_IAD_LISTS = ("realiad_jsons", "realiad_jsons/realiad_jsons")  # the archive holds the folder in a folder of the same name
REAL_IAD_IMAGES = ("realiad_256", "realiad_512", "realiad_1024")  # the smallest comes first: the network's input is smaller still


def _classes_with(root: Path, *folders: str) -> list[str]:
    """Names of the folders in root that hold all of these, e.g. "train/good"."""
    return [name for name in subfolders(root) if all(os.path.isdir(root / name / folder) for folder in folders)]


# --- MVTec-AD, MPDD, BTAD, MVTec LOCO: the folders say everything ---
def is_mvtec(root: Path) -> bool:
    return bool(_classes_with(root, "train/good")) and not is_mvtec_loco(root)


def read_mvtec(root: Path) -> Scan:
    return Scan(root, *lists_from_tree(root, _classes_with(root, "train/good")))


def is_btad(root: Path) -> bool:
    return bool(_classes_with(root, "train/ok"))


def read_btad(root: Path) -> Scan:
    return Scan(root, *lists_from_tree(root, _classes_with(root, "train/ok"), good=("ok",)))


def is_mvtec_loco(root: Path) -> bool:
    return bool(_classes_with(root, "train/good", "validation/good", "test"))


def read_mvtec_loco(root: Path) -> Scan:
    """The masks of test/KIND/NNN.png are ground_truth/KIND/NNN/*; several are joined to ground_truth/KIND/NNN.png."""
    scan = read_mvtec(root)
    for clsname in _classes_with(root, "train/good"):
        names = image_names(root / clsname / "validation" / "good")
        scan.validation += [record(join(clsname, "validation/good", name), 0, clsname) for name in names]
    for position, line in enumerate(scan.test):
        clsname, _, kind, name = line["filename"].split("/")
        folder = join(clsname, "ground_truth", kind, Path(name).stem)
        parts = [join(folder, part) for part in image_names(root / folder)]
        if parts:
            maskname = parts[0] if len(parts) == 1 else f"{folder}.png"
            scan.test[position] = record(line["filename"], line["label"], clsname, maskname)
            if len(parts) > 1:
                scan.joined[maskname] = parts
    return scan


# --- VisA: as published, with a table of splits, or as its authors' preparation script lays it out ---
def is_visa(root: Path) -> bool:
    return (root / VISA_SPLITS).is_file() or bool(_classes_with(root / "1cls", "train/good"))


def read_visa(root: Path) -> Scan:
    """Reads the table where it exists, else the folders 1cls/CLASS."""
    scan = Scan(root)
    if not (root / VISA_SPLITS).is_file():
        for clsname in subfolders(root / "1cls"):
            scan.add(*records_of_class(root, f"1cls/{clsname}", clsname))
        return scan
    path = root / VISA_SPLITS
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not set(VISA_COLUMNS) <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: its first line must name the columns {', '.join(VISA_COLUMNS)}")
        for number, row in enumerate(rows, 2):
            if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
                raise UserError(f"{path}:{number}: split must be train or test, label must be normal or anomaly")
            line = record(row["image"], int(row["label"] == "anomaly"), row["object"], row["mask"])
            (scan.train if row["split"] == "train" else scan.test).append(line)
    return scan


# --- Real-IAD: one JSON file a class names each image, its kind and its mask ---
def is_real_iad(root: Path) -> bool:
    return bool(_real_iad_lists(root))


def read_real_iad(root: Path) -> Scan:
    images = next((name for name in REAL_IAD_IMAGES if (root / name).is_dir()), None)
    if images is None:
        raise UserError(f"{root} holds none of the image folders {', '.join(REAL_IAD_IMAGES)}; unpack one of them there")
    scan = Scan(root)
    for path in _real_iad_lists(root):
        try:
            content = parse_json(read_bytes(path))
            normal, folder = content["meta"]["normal_class"], join(images, content["meta"]["prefix"].strip("/"))
            for split, records in (("train", scan.train), ("test", scan.test)):
                for entry in content[split]:
                    image, mask = (entry[key] and join(folder, entry[key]) for key in ("image_path", "mask_path"))
                    records.append(record(image, int(entry["anomaly_class"] != normal), entry["category"], mask))
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
            raise UserError(f"{path} is not a class's list of Real-IAD: meta, train and test were expected ({error!r})") from None
    return scan


def _real_iad_lists(root: Path) -> list[Path]:
    candidates = [sorted((root / folder).glob("*.json")) for folder in REAL_IAD_LISTS]
    return next((paths for paths in candidates if paths), [])


# --- ELPV: a table with the probability of a defect, as an expert saw it, and the kind of solar cell ---
def is_elpv(root: Path) -> bool:
    return any(match for _, match in _elpv_lines(root))


def read_elpv(root: Path) -> Scan:
    """Each kind of cell is a class. Probability 0 is good, above 1/2 defective; what lies between is left out."""
    scan = Scan(root)
    for number, match in _elpv_lines(root):
        if not match or float(match[2]) > 1:
            raise UserError(f"{root / ELPV_TABLE}:{number}: expected an image, a probability from 0 to 1 and a kind of cell")
        name, probability, clsname = match[1], float(match[2]), match[3]
        if 0 < probability <= 0.5:
            scan.left_out[name] = f"defective with probability {match[2]}"
        else:
            (scan.test if probability else scan.unsplit).append(record(name, int(probability > 0), clsname))
    return scan


def _elpv_lines(root: Path) -> Iterator[tuple[int, re.Match[str] | None]]:
    """The lines of the table, with their numbers; None for one of another form."""
    with suppress(OSError), open(root / ELPV_TABLE, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, re.fullmatch(r"(images/\S+)\s+([01]\.\d+)\s+(\w+)", line.strip())
