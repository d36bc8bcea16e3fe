"""Lists of images: JSON lines, one image a line, names relative to the image folder.

    {"filename": "zipper/test/broken_teeth/000.png", "label": 1, "label_name": "defective",
     "maskname": "zipper/ground_truth/broken_teeth/000_mask.png", "clsname": "zipper"}

label is 0 for a normal and 1 for a defective image. maskname is present only where a mask exists, group, the same for
near-duplicates, only where a split was drawn. Without clsname the class is the fourth part of the path from the end ("zipper"
here).
"""

import json
import os
from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import cv2

from utils.errors import UserError
from utils.files import write_text
from utils.reading import check_path, parse_json, read_text

IMAGE_EXTENSIONS = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
IMAGE_EXTENSIONS |= {ending for ending in (".gif", ".avif") if cv2.haveImageWriter(f"x{ending}")}  # not in every build of OpenCV
SYSTEM_FOLDERS = {"__macosx", "lost+found", "system volume information", "thumb", "thumbs", "thumbnails"}
DRAWN = {  # folders of pictures, by the file that a prediction or an evaluation writes beside them
    "predict.json": {"pictures", "masks", "maps"},
    "metrics.json": {"vis_compound", "vis_single", "report_gallery"},
}
RESERVED = {"mean": "the mean of all classes", **dict.fromkeys(("pooled", "all classes"), "all classes under one threshold")}
GOOD = "good"
FURTHER_PAGES = "with further pages or frames, of which only the first is read"
LAYOUT = "CLASS/train/good/*, CLASS/test/KIND/*, CLASS/ground_truth/KIND/*_mask.*"

Record = dict[str, str | int]


def read_list(path: str | Path) -> list[dict]:
    """The records of a list in the order of its lines, each with filename, label, maskname (or None) and clsname.

    UserError with file and line for an invalid list, and for an empty one.
    """
    return [record for _, record in read_numbered(path)]


def read_numbered(path: str | Path) -> list[tuple[int, dict]]:
    """As `read_list`, each record with the number of its line."""
    try:
        lines = read_text(path, encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"there is no list {path}; tools/prepare_data.py makes one from a folder of images") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a text in UTF-8 ({error.reason}); save it again as UTF-8, in an editor or with iconv"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from None
    records = [(number, _parse_line(line, f"{path}:{number}")) for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise UserError(f"the list {path} names no image")
    return records


def _parse_line(line: str, where: str) -> dict:
    try:
        record = parse_json(line)
    except ValueError as error:
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
    try:
        check_path(filename)
        check_path(maskname or "")
    except ValueError as error:
        raise UserError(f"{where}: filename or maskname is {error}") from None
    if not isinstance(clsname, str | None):
        raise UserError(f"{where}: clsname is {clsname!r}; it must be a text")
    if not clsname:
        parts = filename.split("/")
        if len(parts) < 4:
            raise UserError(f'{where}: no "clsname", and {filename} is too short to hold it (CLASS/SPLIT/KIND/NAME)')
        clsname = parts[-4]
    try:
        check_class(clsname)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    group = {"group": record["group"]} if isinstance(record.get("group"), str) else {}
    return {"filename": filename, "label": int(label), "maskname": maskname or None, "clsname": clsname} | group


def check_class(clsname: str) -> None:
    if clsname in RESERVED:
        raise UserError(f"a class cannot be called '{clsname}', as results call {RESERVED[clsname]}; rename it")


def write_list(records: list[Record], path: str | Path) -> None:
    """Write a list and create its folder; the file appears complete or not at all."""
    write_text(path, "".join(_to_json(record) + "\n" for record in records))


def _to_json(record: Record) -> str:
    text = json.dumps(record, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(record)  # escaped, a name that is not UTF-8 survives


def record(filename: str, label: int, clsname: str, maskname: str | None = None) -> Record:
    """A line of a list. `label`: 0 good, 1 defective; only a defective image keeps its mask. UserError for a reserved class."""
    check_class(clsname)
    line: Record = {"filename": filename, "label": label, "label_name": "defective" if label else "good"}
    return line | ({"maskname": maskname} if maskname and label else {}) | {"clsname": clsname}


def lists_from_tree(root: Path, classes: list[str] | None = None, good: Collection[str] = (GOOD,)) -> tuple[list, list]:
    """Train and test records of a folder in MVTec layout, sorted; `classes` None: every class found.

    `good` are the names of the folder of good images. UserError for a missing class or a class without training images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    if classes is None:
        classes = [name for name in subfolders(root) if (root / name / "train").is_dir() or (root / name / "test").is_dir()]
        if not classes:
            hint = "; it looks like a single class: give the folder above it" if (root / "train").is_dir() else ""
            raise UserError(f"{root} holds no class in the layout {LAYOUT}{hint}")
    train, test = [], []
    for clsname in classes:
        if not (root / clsname).is_dir():
            raise UserError(f"there is no class folder {root / clsname}")
        of_class = records_of_class(root, clsname, clsname, good)
        train += of_class[0]
        test += of_class[1]
    return train, test


def records_of_class(root: Path, folder: str, clsname: str, good: Collection[str] = (GOOD,)) -> tuple[list, list]:
    """Train and test records of one class, whose train, test and ground_truth are in `folder` below root.

    Images may have any common extension. The mask of test/KIND/NAME.* is ground_truth/KIND/NAME_mask.* or NAME.*; a defective
    image without one gets no maskname. UserError if there is no training image.
    """
    train, test = [], []
    for split, records in (("train", train), ("test", test)):
        for kind in subfolders(root / folder / split):
            label = 0 if kind.casefold() in good else 1
            if label and split == "train":
                continue  # a model learns from good images only
            masks = masks_by_stem(root / folder / "ground_truth" / kind) if label else {}
            for name in image_names(root / folder / split / kind):
                maskname = find_mask(masks, name)
                maskname = maskname and join(folder, "ground_truth", kind, maskname)
                records.append(record(join(folder, split, kind, name), label, clsname, maskname))
    if not train:
        where = root / folder / "train" / " or ".join(good)
        raise UserError(f"there is no image in {where}; training needs normal images of each class")
    return train, test


def lists_from_counts(counts: dict) -> tuple[list[Record], list[Record]]:
    """Train and test records from {class: {"train": {"good": n}, "test": {kind: n}}}, sorted.

    Names are MVTec-AD's: 000.png, 001.png, … in each folder, and a mask NNN_mask.png for each defective image.
    """
    train, test = [], []
    try:
        for clsname, splits in sorted(counts.items()):
            train += [record(f"{clsname}/train/{GOOD}/{i:03d}.png", 0, clsname) for i in range(splits["train"][GOOD])]
            for kind, count in sorted(splits["test"].items()):
                for i in range(count):
                    maskname = f"{clsname}/ground_truth/{kind}/{i:03d}_mask.png"
                    test.append(record(f"{clsname}/test/{kind}/{i:03d}.png", int(kind != GOOD), clsname, maskname))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f'a count table is {{class: {{"train": {{"good": n}}, "test": {{kind: n}}}}}} ({error!r})') from None
    if not train:
        raise UserError("the count table holds no training image")
    return train, test


def join(*parts: str) -> str:
    """A name in a list, with / on every system; empty parts are ignored."""
    return "/".join(part for part in parts if part)


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the visible folders in a folder; empty if there is no such folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a folder; hidden files such as macOS's ._000.png do not count."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if _named_like_image(entry.name) and entry.is_file())


@dataclass
class Tree:
    """What lies below a folder: names relative to it, sorted folder by folder. `left_out` has the names by the reason."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def empty_folders(self) -> list[str]:
        """The uppermost folders without an image."""
        filled = {parent.as_posix() for name in self.images for parent in PurePosixPath(name).parents}
        return [name for name in self.folders if name not in filled and PurePosixPath(name).parent.as_posix() in filled]

    def describe_left_out(self) -> list[str]:
        """A line for each reason, with the first names."""
        first = {why: ", ".join(names[:3]) + ", …" * (len(names) > 3) for why, names in self.left_out.items()}
        return [f"left out: {len(names)} {why} ({first[why]})" for why, names in self.left_out.items()]


def walk_images(root: str | Path, extensions: Collection[str] = IMAGE_EXTENSIONS, without: Collection[Path] = ()) -> Tree:
    """All files below a folder whose names end like images (or as in `extensions`), except those in the folders `without`.

    Links to folders are followed, each folder is read once, and under its own name rather than a link's.
    """
    tree, waiting = Tree(), deque([""])
    excluded = {os.path.realpath(folder) for folder in without}
    seen = {str(parent) for parent in Path(os.path.realpath(root)).parents}  # a link that leads there would not end
    while waiting:
        below = waiting.popleft()
        real = os.path.realpath(os.path.join(root, below))
        try:
            names = sorted(os.listdir(real)) if real not in seen else None
        except OSError as error:
            tree.left_out[f"folders that cannot be read ({error.strerror})"].append(below or str(root))
            continue
        if names is None:
            tree.left_out["linked folders that are read under another name"].append(below)
            continue
        seen.add(real)
        if below:
            tree.folders.append(below)
        drawn = {folder for mark, folders in DRAWN.items() if mark in names for folder in folders}
        for name in names:
            path, suffix = os.path.join(real, name), os.path.splitext(name)[1].lower()
            is_folder = os.path.isdir(path)
            if name.startswith("."):
                why = "hidden"
            elif is_folder and (name[0] in "@#$" or name.casefold() in SYSTEM_FOLDERS):
                why = "folders of the system or of thumbnails"
            elif is_folder and os.path.realpath(path) in excluded:
                why = "folders of this output"
            elif is_folder and name in drawn:
                why = "folders of pictures that an earlier run drew"
            elif is_folder:
                why = None
                (waiting.append if os.path.islink(path) else waiting.appendleft)(join(below, name))  # links come last
            elif suffix not in extensions:
                why = f"of type {suffix}" if suffix else "without an extension"
            elif not os.path.isfile(path):
                why = "links to nothing, or no files"
            else:
                why = None
                tree.images.append(join(below, name))
            if why:
                tree.left_out[why].append(join(below, name))
    tree.images.sort(key=lambda name: (PurePosixPath(name).parts[:-1], name))
    tree.folders.sort(key=lambda name: PurePosixPath(name).parts)
    return tree


def masks_by_stem(folder: Path) -> dict[str, str]:
    """The masks in a folder by their stem, in one form of Unicode: macOS has two for "ä"."""
    return {normalize("NFC", Path(name).stem): name for name in image_names(folder)}


def find_mask(masks: dict[str, str], name: str) -> str | None:
    """The mask of an image among `masks_by_stem`: NAME_mask.* has priority over NAME.*."""
    stem = normalize("NFC", Path(name).stem)
    return masks.get(f"{stem}_mask") or masks.get(stem)


def _named_like_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")
