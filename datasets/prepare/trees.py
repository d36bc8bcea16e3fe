"""Data sets whose folders say all: MVTec-AD, MPDD, BTAD, MVTec LOCO."""

from pathlib import Path

from datasets.lists import image_names, join, lists_from_tree, record, subfolders
from datasets.prepare.scan import Found


def has_class_with(root: Path, *folders: str) -> bool:
    """Whether a folder in root holds all of these, e.g. "train/good"."""
    return any(all((root / name / folder).is_dir() for folder in folders) for name in subfolders(root))


def is_mvtec(root: Path) -> bool:
    return has_class_with(root, "train/good") and not is_mvtec_loco(root)


def read_mvtec(root: Path) -> Found:
    return Found(root, *lists_from_tree(root, _classes(root, "train/good")))


def is_btad(root: Path) -> bool:
    return has_class_with(root, "train/ok")


def read_btad(root: Path) -> Found:
    return Found(root, *lists_from_tree(root, _classes(root, "train/ok"), good=("ok",)))


def is_mvtec_loco(root: Path) -> bool:
    return has_class_with(root, "train/good", "validation/good")


def read_mvtec_loco(root: Path) -> Found:
    """The masks of test/KIND/NNN.png are ground_truth/KIND/NNN/*; several are joined to ground_truth/KIND/NNN.png."""
    classes = _classes(root, "train/good")
    found = Found(root, *lists_from_tree(root, classes))
    for clsname in classes:
        names = image_names(root / clsname / "validation" / "good")
        found.validation += [record(join(clsname, "validation/good", name), 0, clsname) for name in names]
    for position, line in enumerate(found.test):
        clsname, _, kind, name = line["filename"].split("/")
        folder = join(clsname, "ground_truth", kind, Path(name).stem)
        parts = [join(folder, part) for part in image_names(root / folder)]
        if parts:
            maskname = parts[0] if len(parts) == 1 else f"{folder}.png"
            found.test[position] = record(line["filename"], line["label"], clsname, maskname)
            if len(parts) > 1:
                found.joined[maskname] = parts
    return found


def _classes(root: Path, folder: str) -> list[str]:
    return [name for name in subfolders(root) if (root / name / folder).is_dir()]
