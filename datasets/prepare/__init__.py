"""From a folder of images to the lists that a configuration's meta_file names.

In the order of tools/prepare_data.py: read_layout (here; `published` and `folder` hold the readers) makes a Scan (`scan`),
`checks` reads every image and mask, `write_lists` leaves out, splits and writes, `summary` prints a table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.lists import subfolders, walk_images
from datasets.prepare import published
from datasets.prepare.folder import read_folder
from datasets.prepare.scan import Scan
from utils.errors import UserError


@dataclass(frozen=True)
class Kind:
    """A layout: how it looks, who documents it, whether a folder has it, and its reader."""

    layout: str
    source: str
    is_there: Callable[[Path], bool]
    read: Callable[..., Scan]


def _is_folder(root: Path) -> bool:
    others = (published.is_visa, published.is_real_iad, published.is_mvtec_loco, published.is_elpv)
    return not any(has_layout(root) for has_layout in others) and bool(walk_images(root).images)


KINDS = {
    "mvtec_loco": Kind(
        "CLASS/{train,validation}/good, CLASS/test/KIND, CLASS/ground_truth/KIND/NNN/*.png",
        "MVTec LOCO AD: Bergmann et al., Beyond Dents and Scratches, IJCV 2022, and the archive's readme",
        published.is_mvtec_loco,
        published.read_mvtec_loco,
    ),
    "btad": Kind(
        "CLASS/train/ok, CLASS/test/{ok,ko}, CLASS/ground_truth/ko/NAME.*",
        "BTAD: Mishra et al., VT-ADL, ISIE 2021, and its authors' repository VT-ADL",
        published.is_btad,
        published.read_btad,
    ),
    "real_iad": Kind(
        "realiad_jsons/CLASS.json and realiad_256, realiad_512 or realiad_1024",
        "Real-IAD: Wang et al., CVPR 2024, and its project page",
        published.is_real_iad,
        published.read_real_iad,
    ),
    "visa": Kind(
        "split_csv/1cls.csv with CLASS/Data/{Images,Masks}, or 1cls/CLASS/{train/good,test/good,test/bad,ground_truth/bad}",
        "VisA: Zou et al., SPot-the-Difference, ECCV 2022, and its authors' repository spot-diff",
        published.is_visa,
        published.read_visa,
    ),
    "elpv": Kind(
        "labels.csv with lines such as 'images/cell0001.png  0.0  mono', and images; 0 is good, above 1/2 defective",
        "ELPV: Deitsch et al., Automatic classification of defective photovoltaic module cells, Solar Energy 2019",
        published.is_elpv,
        published.read_elpv,
    ),
    "mvtec": Kind(
        "CLASS/train/good, CLASS/test/KIND, CLASS/ground_truth/KIND/NAME_mask.png",
        "MVTec AD: Bergmann et al., CVPR 2019, and the archive's readme",
        published.is_mvtec,
        published.read_mvtec,
    ),
    "mpdd": Kind(
        "CLASS/train/good, CLASS/test/KIND, CLASS/ground_truth/KIND/NAME_mask.png",
        "MPDD: Jezek et al., Deep learning-based defect detection of metal parts, ICUMT 2021, and its authors' repository",
        published.is_mvtec,
        published.read_mvtec,
    ),
    "folder": Kind(
        "your own images: [CLASS/]{train/good,test/KIND}, or [CLASS/]{good,KIND}, or [CLASS/]* where all are good",
        "Masks: [CLASS/]ground_truth/KIND/NAME_mask.* or NAME.*. Usual other names serve too; docs/data.md lists them",
        _is_folder,
        read_folder,
    ),
}


def read_layout(kind: str, root: Path, **options: str | None) -> Scan:
    """Read a data set of a kind. UserError for another layout, which says what root holds and what it looks like."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    if not KINDS[kind].is_there(root):
        raise UserError(f"{root} is not laid out as {kind}, {KINDS[kind].layout}: it holds {_contents(root)}{_hint(kind, root)}")
    scan = KINDS[kind].read(root, **options)
    scan.tree = walk_images(root)
    return scan


def _contents(root: Path) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in root.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    tree = walk_images(root)
    left_out = [] if tree.images else tree.describe_left_out()
    return "; ".join([", ".join(names[:5]) + more, *left_out]) if names else "nothing"


def _hint(kind: str, root: Path) -> str:
    """The published kind that root looks like; else the folder above or below that has the layout; else the kind `folder`."""
    other = next((name for name, layout in KINDS.items() if layout.is_there(root)), None)
    if other and other != "folder":
        return f"; it looks like the kind '{other}'"
    near = [root / name for name in subfolders(root)] + [root.absolute().parent] * any(root.iterdir())
    for folder in near if kind != "folder" else ():
        if KINDS[kind].is_there(folder):
            return f"; give {folder} instead"
    return f"; it looks like the kind '{other}'" if other else ""
