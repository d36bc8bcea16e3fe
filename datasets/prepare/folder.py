"""A person's own images, however they lie: split already, sorted into good and bad, or only photographs of good products."""

from collections.abc import Collection
from pathlib import Path

from datasets.lists import Record, find_mask, image_names, join, masks_by_stem, record, records_of_class, subfolders, walk_images
from datasets.prepare.scan import Found
from utils.errors import UserError

GOOD_NAMES = ("good", "ok", "normal")
BAD_NAMES = ("bad", "ng", "defect", "defects", "defective", "anomaly", "anomalies", "abnormal", "broken")
MASKS = "ground_truth"


def read_folder(root: Path, good: str | None = None, bad: str | None = None) -> Found:
    """Each folder in root is a class, or root itself is the only one where it holds images, a folder of good ones, or train/.

    A class is split already (train/good/*, test/KIND/*), or a folder of good images with other folders beside it, each a kind of
    defect, or images that are all taken as good; the last two with subfolders. The masks of KIND/NAME.* are
    ground_truth/KIND/NAME_mask.* or NAME.*. `good` names the folder of good images, else it is one of GOOD_NAMES; `bad` the only
    folder of defective ones. Case does not matter.
    """
    names = (good.casefold(),) if good else GOOD_NAMES
    found = Found(root)
    for folder in [""] if _is_class(root, names) else subfolders(root):
        clsname = folder or root.absolute().name
        good_folder = _find(root / folder, names)
        if (root / folder / "train").is_dir():
            train, test = records_of_class(root, folder, clsname, names)
            found.train += train
            found.test += test
        elif good_folder is not None:
            found.unsplit += _records(root, folder, good_folder, 0, clsname)
            others = [name for name in subfolders(root / folder) if name not in (good_folder, MASKS)]
            for kind in [name for name in others if bad is None or name.casefold() == bad.casefold()]:
                found.test += _records(root, folder, kind, 1, clsname)
        else:
            _check_all_good(root, folder)
            found.unsplit += _records(root, folder, "", 0, clsname)
    if bad is not None and not any(line["label"] for line in found.test):
        raise UserError(f"{root}: there is no folder '{bad}' with images beside a folder of good ones ({', '.join(names)})")
    return found


def _is_class(folder: Path, names: Collection[str]) -> bool:
    return bool(image_names(folder)) or (folder / "train").is_dir() or _find(folder, names) is not None


def _find(folder: Path, names: Collection[str]) -> str | None:
    """The folder of good images in a class's folder."""
    return next((name for name in subfolders(folder) if name.casefold() in names), None)


def _records(root: Path, folder: str, kind: str, label: int, clsname: str) -> list[Record]:
    """Of all images below a kind's folder; a mask lies below ground_truth as its image lies below the class's folder."""
    records = []
    masks: dict[str, dict[str, str]] = {}
    for name in sorted(walk_images(root / folder / kind)):
        filename = join(kind, name)
        below = join(MASKS, filename.rpartition("/")[0])
        if label and below not in masks:
            masks[below] = masks_by_stem(root / folder / below)
        maskname = find_mask(masks[below], name) if label else None
        records.append(record(join(folder, filename), label, clsname, maskname and join(folder, below, maskname)))
    return records


def _check_all_good(root: Path, folder: str) -> None:
    """UserError where a folder that would be taken as good has a name that says the opposite."""
    parts = [folder, *(part for name in walk_images(root / folder) for part in name.split("/")[:-1])]
    for part in parts:
        if part.casefold() in BAD_NAMES:
            raise UserError(
                f"{root / folder}: '{part}' sounds like defective images, but beside it there is no folder of good ones "
                f"({', '.join(GOOD_NAMES)}); name that folder with --good, or move images that lie beside folders"
            )
