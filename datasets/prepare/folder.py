"""A user's own images: the names of folders and files say which are good, which are defective and which are masks.

All decisions are made on names, in three steps: which folders are classes, which files are masks, and what each class's folders
hold. Where names allow two readings, UserError shows both and the option that chooses.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.lists import record, walk_images
from datasets.prepare.names import (
    FILLERS,
    MASKS,
    OPPOSITES,
    SPLITS,
    Names,
    drawn_stem,
    fold,
    is_called_masks,
    is_numbered_mask,
    mask_stem,
    names_drawings,
    names_masks,
)
from datasets.prepare.scan import Scan
from utils.errors import UserError


class Image(NamedTuple):
    """An image as its folders describe it."""

    name: str
    split: str | None  # train, test, validation; None: not split yet
    kind: str  # the uppermost folder, below its class, that is no split; empty: it lies directly in the class or split
    label: int | None  # None: no name says it


def read_folder(root: Path, good: str | None = None, bad: str | None = None) -> Scan:
    """Each folder in root is a class; root itself is the only class if it holds images, good/, masks/ or train/.

    A class has one of three layouts: {train,test}/KIND/*; a folder of good images beside other folders, each a kind of defect; or
    images that all count as good. `good` names the folder of good images, or is "." where all images are good; `bad` names the
    only folder of defective images.
    """
    names, scan, images = Names(good, bad), Scan(root), walk_images(root).images
    own_names = {fold(name) for name in (good, bad) if name}
    stems = {(PurePosixPath(name).parent, _stem(name)) for name in images}
    for name in images:
        is_drawn = drawn_stem(name) != _stem(name) and (PurePosixPath(name).parent, drawn_stem(name)) in stems
        if is_drawn or any(names_drawings(part) and fold(part) not in own_names for part in _folders(name)):
            scan.left_out[name] = "drawn maps, no photographs"
    images = [name for name in images if name not in scan.left_out]
    for option, own in (("--good", good), ("--bad", bad)):
        if own not in (None, ".") and not any(fold(own) == fold(part) for name in images for part in _folders(name)):
            raise UserError(f"{root}: there is no folder '{own}' with images in it ({option})")
    if depth := next((name for name in images if "xyz" in _folders(name)), None):
        raise UserError(f"{root}: {depth} looks like MVTec 3D-AD's positions of points, which are not supported; move xyz/ away")
    masks_above, is_class = _first_level(root, images, names)
    masks, classes = [], defaultdict(list)
    for name in images:
        folders = _folders(name)
        is_twin = mask_stem(name) != _stem(name) and (PurePosixPath(name).parent, mask_stem(name)) in stems
        if is_twin or masks_above & {*folders[:1]} or any(map(names_masks, folders[not is_class :])):
            masks.append(name)
        else:
            classes["" if is_class else folders[0]].append(name)
    if not classes:
        raise UserError(f"{root} holds masks only: their folders or names say so ({masks[0]})")
    for folder, members in classes.items():
        _read_class(scan, folder, [_describe(name, not is_class, names) for name in members], names)
    _add_masks(scan, masks, is_class, names)
    return scan


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _stem(name: str) -> str:
    return fold(PurePosixPath(name).stem)


def _first_level(root: Path, images: list[str], names: Names) -> tuple[set[str], bool]:
    """Which folders in root hold masks, and whether root itself is the only class."""
    inner: defaultdict[str, set[str]] = defaultdict(set)  # first folder: the folders in it
    for folders in map(_folders, images):
        if folders:
            inner[folders[0]].update(folders[1:2])
    has_layout = {first: any(names.split(part) or names.label(part) == 0 for part in parts) for first, parts in inner.items()}
    masks = {first for first in inner if names_masks(first) and (is_called_masks(first) or not has_layout[first])}
    good = [first for first in inner.keys() - masks if names.label(first) == 0 and not has_layout[first]]
    if good or any(map(names.split, inner.keys() - masks)):
        if names.good is None:
            _check_first_good(root, good, inner.keys() - masks - {*good}, names)
        return masks, True
    plain = {fold(first) for first in inner if not has_layout[first]}
    for one, other in filter(plain.issuperset, OPPOSITES) if names.good is None else ():
        raise UserError(
            f"{root}: {one} and {other} may be good and defective images, or two classes: use --good NAME, or --good . "
            "if all images are good"
        )
    classes = [first for first in inner if first not in masks and has_layout[first]]
    direct = [name for name in images if "/" not in name]
    if direct and (classes or (inner.keys() - masks and names.good != ".")):
        raise UserError(
            f"{root} holds images ({direct[0]}) beside folders ({', '.join(sorted(inner.keys() - masks)[:3])}): if each "
            "folder is a class, move the images into one; if everything is one class of good images, use --good ."
        )
    return masks, bool(direct or (masks and not classes))


def _check_first_good(root: Path, good: list[str], others: set[str], names: Names) -> None:
    """UserError where "io board" beside "cpu board" may be a product: nothing else says good, defective or a split."""
    says_nothing = all(names.label(other) is None and not names.split(other) for other in others)
    if good and others and says_nothing and not any(map(names.says_only_good, good)):
        raise UserError(
            f"{root}: {min(good)} may hold good images beside defects ({', '.join(sorted(others)[:3])}), or be a class beside "
            f"others: use --good {min(good)!r}, or rename {min(good)} if it is a class"
        )


def _describe(name: str, in_class: bool, names: Names) -> Image:
    parts = _folders(name)[in_class:]
    kinds = [part for part in parts if names.is_kind(part)]
    labels = {names.label(part) for part in parts} - {None}
    if len(labels) > 1:
        raise UserError(f"{name}: its folders say both good and defective; rename one, or move the image")
    split = next(filter(None, map(names.split, parts)), None)
    return Image(name, split, kinds[0] if kinds else "", labels.pop() if labels else None)


def _read_class(scan: Scan, folder: str, images: list[Image], names: Names) -> None:
    where, clsname = scan.root / folder, unicodedata.normalize("NFC", folder or scan.root.resolve().name or "root")
    if folder and names.label(folder) == 1 and names.good is None:
        raise UserError(
            f"{where}: '{folder}' sounds like defective images; if it is a class, name the folder of its good images with --good "
            "NAME (. for all); else move it beside a folder of good ones"
        )
    _check_file_names(where, [image for image in images if image.label is None and not image.kind], names)
    splits, kinds = {image.split for image in images} - {None}, {(image.split, image.kind) for image in images if image.kind}
    beside = {split for split, _ in kinds} | ({None} if splits else set())  # where an image without a folder says nothing
    images = [
        image._replace(label=0)
        if image.label is None
        and image.split in (None, "train")
        and (names.good == "." or not (image.kind or image.split in beside))
        else image
        for image in images
    ]
    has_good, unknown = any(image.label == 0 and image.split in (None, "train") for image in images), []
    for image in images:
        label = 1 if image.label is None and image.kind and has_good else image.label  # an unknown name is a kind of defect
        if image.split is None and image.kind and splits:
            scan.left_out[image.name] = f"beside {', '.join(sorted(splits))}"
        elif label and names.bad is not None and fold(names.bad) not in fold(image.name).split("/"):
            scan.left_out[image.name] = f"not in {names.bad}"
        elif label and (image.split == "train" or (image.split == "validation" and "test" in splits)):
            scan.left_out[image.name] = f"defective, in {image.split}"
        elif label is None:
            unknown.append(image)
        else:
            line = record(image.name, label, clsname)
            if image.split is None:
                (scan.test if label else scan.unsplit).append(line)
            elif image.split == "validation" and "test" in splits:
                scan.validation.append(line)
            else:
                (scan.train if image.split == "train" else scan.test).append(line)
    if unknown:
        raise UserError(_question(where, unknown, images))
    if not has_good:
        found = ", ".join(sorted({image.kind or image.name for image in images})[:5])
        raise UserError(f"{where}: there is no folder of good images to train with ({found}); name it with --good NAME")


def _check_file_names(where: Path, images: list[Image], names: Names) -> None:
    """UserError where some files are called defective and no folder says so. Where all are, it is the product's name."""
    bad = [image.name for image in images if names.label(PurePosixPath(image.name).stem) == 1]
    if names.good is None and 0 < len(bad) < len(images):
        raise UserError(
            f"{where}: {bad[0]} is called defective and lies among others where no folder says so: move such images to a "
            "folder bad, or use --good . if all images are good"
        )


def _question(where: Path, unknown: list[Image], images: list[Image]) -> str:
    """Why a class cannot be read: both readings and the options that choose."""
    kinds = sorted({image.kind for image in images if image.kind})
    direct = next((image.name for image in unknown if not image.kind), None)
    if direct:
        beside = f" beside {', '.join(kinds[:3])}" if kinds else ""
        return f"{where}: {direct} lies{beside} where no folder says whether it is good or defective; move it into such a folder"
    either = (
        f"{where}: no name says which of its folders ({', '.join(kinds[:5])}) are good: if one of them holds the good images "
    )
    either += f"and the others defects, use --good NAME (such as --good {unknown[0].kind!r})"
    return either if any(image.label == 1 for image in images) else f"{either}; if all of them are good, use --good ."


def _add_masks(scan: Scan, masks: list[str], is_class: bool, names: Names) -> None:
    """Give each defective image its mask: the same path without the names of splits and masks, or the only image of its stem."""
    by_key: dict[tuple, list[str]] = {}
    for name in sorted(masks, key=lambda name: mask_stem(name) == _stem(name)):  # NAME_mask comes first
        parts = by_key.setdefault(_key(name, mask_stem(name)), [])
        if parts and not (is_numbered_mask(name) and is_numbered_mask(parts[0])):
            scan.left_out[name] = "second masks of an image"
        else:
            parts.append(name)
    records = list(scan.records())
    stems = {line["filename"]: _stem(line["filename"]) for line in records}
    of_stem = Counter((line["clsname"], stems[line["filename"]]) for line in records)
    for line in records:
        stem = stems[line["filename"]]
        key = _key(line["filename"], stem)
        flat = (*key[: 1 - is_class], stem)
        parts = by_key.pop(key, None) or (of_stem[line["clsname"], stem] == 1 and by_key.pop(flat, None))
        if parts and line["label"]:
            line |= {"maskname": _join_masks(scan, parts), "clsname": line.pop("clsname")}  # clsname stays last
        elif parts and not any(names.label(part) == 0 for part in _folders(line["filename"])):
            raise UserError(
                f"{scan.root}: {line['filename']} lies where all images count as good, and has the mask {parts[0]}: move images "
                "with defects to a folder of their own, such as bad"
            )
        elif parts:
            scan.left_out |= dict.fromkeys(parts, "masks of good images")
    scan.left_out |= {name: "masks without an image" for parts in by_key.values() for name in parts}


def _join_masks(scan: Scan, parts: list[str]) -> str:
    """The mask of an image that has these: one, or NAME_mask_1, NAME_mask_2, …, whose union NAME_mask.png will be."""
    if len(parts) == 1:
        return parts[0]
    first = PurePosixPath(parts[0])
    joined = first.with_name(f"{first.stem.rstrip('0123456789').rstrip(' ._-')}.png").as_posix()
    scan.joined[joined] = parts
    return joined


def _key(name: str, stem: str) -> tuple[str, ...]:
    """What a mask shares with its image: the folders without words such as test, images and masks, and the stem."""
    texts = [" ".join(re.findall(r"[^\W_]+", fold(part))).replace("ground truth", "gt") for part in _folders(name)]
    kept = [" ".join(word for word in text.split() if word not in MASKS | FILLERS | SPLITS.keys()) for text in texts]
    return (*filter(None, kept), stem)
