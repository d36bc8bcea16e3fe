"""Lists of images: JSON lines, one image a line, names relative to the image folder.

    {"filename": "zipper/test/broken_teeth/000.png", "label": 1, "label_name": "defective",
     "maskname": "zipper/ground_truth/broken_teeth/000_mask.png", "clsname": "zipper"}

label is 0 for a normal and 1 for a defective image; maskname stands only where a mask exists; without clsname the class is
the fourth part of the path from the end ("zipper" here).
"""

import json
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text

IMAGE_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
GOOD = "good"
LAYOUT = "CLASS/train/good/*, CLASS/test/KIND/*, CLASS/ground_truth/KIND/*_mask.*"

Record = dict[str, str | int]


def read_list(path: str | Path) -> list[dict]:
    """The records of a list in the order of its lines, each with filename, label, maskname (or None) and clsname.

    UserError naming file and line for anything that is not such a list, and for an empty one.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"there is no list {path}; tools/make_lists.py makes one from a folder of images") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None
    records = [_parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise UserError(f"the list {path} names no image")
    return records


def _parse_line(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); a list holds one JSON object a line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: not a JSON object; a list holds one object with filename and label a line")
    for key in ("filename", "label"):
        if key not in record:
            raise UserError(f'{where}: the key "{key}" is missing')
    filename, label, maskname, clsname = (record.get(key) for key in ("filename", "label", "maskname", "clsname"))
    if not isinstance(filename, str) or not filename:
        raise UserError(f"{where}: filename is {filename!r}; it must be a path relative to image_dir")
    if label not in (0, 1):
        raise UserError(f"{where}: label is {label!r}; it must be 0 (good) or 1 (defective)")
    if not isinstance(maskname, str | None):
        raise UserError(f"{where}: maskname is {maskname!r}; it must be a path relative to image_dir, or null")
    if not isinstance(clsname, str | None):
        raise UserError(f"{where}: clsname is {clsname!r}; it must be a text")
    if not clsname:
        parts = filename.split("/")
        if len(parts) < 4:
            raise UserError(f'{where}: no "clsname", and {filename} is too short to hold it (CLASS/SPLIT/KIND/NAME)')
        clsname = parts[-4]
    return {"filename": filename, "label": int(label), "maskname": maskname or None, "clsname": clsname}


def write_list(records: list[Record], path: str | Path) -> None:
    """Write a list, making its folder; the file appears complete or not at all."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def lists_from_tree(root: Path, classes: list[str] | None = None) -> tuple[list[Record], list[Record]]:
    """Train and test records of a folder in MVTec layout, sorted; `classes` None takes every class found.

    Images may have any common extension. The mask of CLASS/test/KIND/NAME.* is CLASS/ground_truth/KIND/NAME_mask.* or
    NAME.*; a defective image without one gets no maskname. UserError where there is no such class or no training image.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    if classes is None:
        classes = [name for name in _subfolders(root) if (root / name / "train").is_dir() or (root / name / "test").is_dir()]
        if not classes:
            hint = "; it looks like a single class: give the folder above it" if (root / "train").is_dir() else ""
            raise UserError(f"{root} holds no class in the layout {LAYOUT}{hint}")
    train, test = [], []
    for clsname in classes:
        folder = root / clsname
        if not folder.is_dir():
            raise UserError(f"there is no class folder {folder}")
        names = _image_names(folder / "train" / GOOD)
        if not names:
            raise UserError(f"there is no image in {folder / 'train' / GOOD}; training needs normal images of each class")
        train += [_record(clsname, "train", GOOD, name) for name in names]
        for kind in _subfolders(folder / "test"):
            masks = {} if kind == GOOD else _mask_names(folder / "ground_truth" / kind)
            for name in _image_names(folder / "test" / kind):
                stem = Path(name).stem
                test.append(_record(clsname, "test", kind, name, masks.get(f"{stem}_mask") or masks.get(stem)))
    return train, test


def lists_from_counts(counts: dict) -> tuple[list[Record], list[Record]]:
    """Train and test records from {class: {"train": {"good": n}, "test": {kind: n}}}, sorted.

    Names are MVTec-AD's: 000.png, 001.png, … in each folder, and a mask NNN_mask.png for each defective image.
    """
    train, test = [], []
    try:
        for clsname, splits in sorted(counts.items()):
            train += [_record(clsname, "train", GOOD, f"{i:03d}.png") for i in range(splits["train"][GOOD])]
            for kind, count in sorted(splits["test"].items()):
                masks = [None if kind == GOOD else f"{i:03d}_mask.png" for i in range(count)]
                test += [_record(clsname, "test", kind, f"{i:03d}.png", mask) for i, mask in enumerate(masks)]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f'a count table is {{class: {{"train": {{"good": n}}, "test": {{kind: n}}}}}} ({error!r})') from None
    if not train:
        raise UserError("the count table holds no training image")
    return train, test


def _record(clsname: str, split: str, kind: str, name: str, maskname: str | None = None) -> Record:
    record = {
        "filename": f"{clsname}/{split}/{kind}/{name}",
        "label": 0 if kind == GOOD else 1,
        "label_name": "good" if kind == GOOD else "defective",
    }
    if maskname:
        record["maskname"] = f"{clsname}/ground_truth/{kind}/{maskname}"
    return {**record, "clsname": clsname}


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a folder; hidden files, such as macOS's ._000.png, are no images."""
    if not folder.is_dir():
        return []
    entries = [entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_EXTENSIONS]
    return sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))


def _mask_names(folder: Path) -> dict[str, str]:
    return {Path(name).stem: name for name in _image_names(folder)}
