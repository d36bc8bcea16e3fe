"""A user's own images: already split, sorted into good and bad, or only photographs of good products."""

from collections.abc import Collection
from pathlib import Path

from datasets.lists import Record, find_mask, image_names, join, masks_by_stem, record, records_of_class, subfolders, walk_images
from datasets.prepare.scan import Scan
from utils.errors import UserError

GOOD_NAMES = ("good", "ok", "normal")
BAD_NAMES = ("bad", "ng", "defect", "defects", "defective", "anomaly", "anomalies", "abnormal", "broken")
MASKS = "ground_truth"


def read_folder(root: Path, good: str | None = None, bad: str | None = None) -> Scan:
    """Each folder in root is a class; root itself is the only class if it holds images, a folder of good images, or train/.

    A class has one of three layouts: train/good/* and test/KIND/*; a folder of good images beside other folders, each a kind of
    defect; or images that all count as good. The last two may have subfolders. The mask of KIND/NAME.* is
    ground_truth/KIND/NAME_mask.* or NAME.*. `good` names the folder of good images (default: one of GOOD_NAMES), `bad` the only
    folder of defective images (default: all others). Case does not matter.
    """
    names = (good.casefold(),) if good else GOOD_NAMES
    scan = Scan(root)
    is_class = bool(image_names(root)) or (root / "train").is_dir() or _find(root, names) is not None
    for folder in [""] if is_class else subfolders(root):
        clsname = folder or root.absolute().name
        good_folder = _find(root / folder, names)
        if (root / folder / "train").is_dir():
            scan.add(*records_of_class(root, folder, clsname, names))
        elif good_folder is not None:
            scan.unsplit += _records(root, folder, good_folder, 0, clsname)
            others = [name for name in subfolders(root / folder) if name not in (good_folder, MASKS)]
            for kind in [name for name in others if bad is None or name.casefold() == bad.casefold()]:
                scan.test += _records(root, folder, kind, 1, clsname)
        else:
            _check_all_good(root, folder)
            scan.unsplit += _records(root, folder, "", 0, clsname)
    if bad is not None and not any(line["label"] for line in scan.test):
        raise UserError(f"{root}: there is no folder '{bad}' with images beside a folder of good ones ({', '.join(names)})")
    return scan


def _find(folder: Path, names: Collection[str]) -> str | None:
    """The name of the folder of good images in a class's folder."""
    return next((name for name in subfolders(folder) if name.casefold() in names), None)


def _records(root: Path, folder: str, kind: str, label: int, clsname: str) -> list[Record]:
    """All images below a kind's folder. A mask has the same path below ground_truth as its image has below the class's folder."""
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
    """UserError where a folder whose images would count as good has a name that suggests defects."""
    parts = [folder, *(part for name in walk_images(root / folder) for part in name.split("/")[:-1])]
    for part in parts:
        if part.casefold() in BAD_NAMES:
            raise UserError(
                f"{root / folder}: '{part}' sounds like defective images, but beside it there is no folder of good ones "
                f"({', '.join(GOOD_NAMES)}); name that folder with --good, or move images that lie beside folders"
            )
