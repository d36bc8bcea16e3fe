"""Names of what is written for an image, and of the classes a tool can be started for."""

import glob
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

ANY_CLASS = "*"  # as --class_name: makes a pattern of a path that holds {class_name}


def output_names(filenames: Sequence[str]) -> list[PurePath]:
    """For each image of a list a path without ending that stays below the folder it is joined to, and is its own.

    "a/b/000.png" becomes a/b/000; where another image, e.g. "a/b/000.jpg", would have that too, both keep their ending.
    """
    paths = [below(filename) for filename in filenames]
    whole = set(paths)
    count = Counter([path.with_suffix("") for path in whole]) + Counter(whole)
    return [path.with_suffix("") if count[path.with_suffix("")] == 1 else path for path in paths]


def below(filename: str) -> PurePath:
    """The image's name as a path that stays below the folder it is joined to."""
    name = PurePath(filename)
    return PurePath(*(part for part in name.parts if part not in (name.anchor, "..")))


def in_class(name: PurePath, clsname: str) -> PurePath:
    """<kind>/<name>: what comes after <class>/test/ or, where there is no such folder, after <class>/; else the whole name."""
    parts = name.parts
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == clsname:
            start = position + 2 if parts[position + 1] == "test" and position + 2 < len(parts) else position + 1
            return PurePath(*parts[start:])
    return name


def names_in_class(filenames: Sequence[str], clsnames: Sequence[str]) -> list[PurePath]:
    """<kind>/<name> of each image, its own within its class: images that would share one keep their whole name."""
    names = list(zip(clsnames, output_names(filenames), strict=True))
    count = Counter((clsname, in_class(name, clsname)) for clsname, name in set(names))
    return [short if count[clsname, short := in_class(name, clsname)] == 1 else name for clsname, name in names]


def feature_names(filenames: Sequence[str], clsnames: Sequence[str]) -> list[PurePath]:
    """<class>/<kind>/<name> of each image, where its reconstructed features are saved as .npy."""
    names = names_in_class(filenames, clsnames)
    return [below(clsname) / name for name, clsname in zip(names, clsnames, strict=True)]


def find_images(names: Iterable[PurePath], filenames: Sequence[str], clsname: str) -> list[str | None]:
    """feature_names the other way: the image of each name; None where there is none, or where more than one may have it.

    `filenames` are all images that there are. Which of them were evaluated together is not known, and with it neither whether
    a name lost its ending nor how short it is: every name that feature_names can give to an image is looked up.
    """
    owners = defaultdict(list)
    for filename in filenames:
        whole = below(filename)
        short = in_class(whole, clsname)
        for name in {whole, short, whole.with_suffix(""), short.with_suffix("")}:
            owners[below(clsname) / name].append(filename)
    return [owners[name][0] if len(owners[name]) == 1 else None for name in names]


def matching_classes(pattern: str | Path) -> list[str]:
    """The classes for which the path exists; `pattern` holds ANY_CLASS in the class's place."""
    pattern = str(pattern)
    before, *others = (re.escape(part) for part in pattern.split(ANY_CLASS))
    shape = re.compile(before + "([^/]+)" + r"\1".join(others))  # it may stand twice: decoders/<class>/<class>.pth.tar
    found = glob.glob(ANY_CLASS.join(glob.escape(part) for part in pattern.split(ANY_CLASS)))
    return sorted(match[1] for path in found if (match := shape.fullmatch(path)))
