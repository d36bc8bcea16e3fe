"""Where images come from: files, folders, patterns, frames of a video or of a camera."""

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from datasets.images import count_frames, read_rgb
from datasets.lists import FURTHER_PAGES, IMAGE_EXTENSIONS, Tree, walk_images
from utils.errors import UserError

VIDEO_EXTENSIONS = {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}
KNOWN = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS


@dataclass(frozen=True)
class Item:
    """One image to predict: its name in scores.csv, and how to read it (h x w x 3 uint8 RGB; raises UserError)."""

    file: str
    read: Callable[[], np.ndarray]


@dataclass
class Inputs:
    """What the user asked for: images and videos, or one camera."""

    paths: list[Path] = field(default_factory=list)  # absolute, in order, without duplicates
    folder: Path | None = None  # holds all paths; None for a camera
    camera: int | None = None
    missing: list[tuple[str, str]] = field(default_factory=list)  # inputs without an image, and why
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # names by the reason

    def named(self, folder: Path | None) -> dict[str, Path | int]:
        """The paths by their names relative to `folder`, or the camera by its name."""
        if self.camera is not None:
            return {f"camera{self.camera}": self.camera}
        return {path.relative_to(folder).as_posix(): path for path in self.paths}


def find_inputs(given: Sequence[str], out: str | Path) -> Inputs:
    """Find the images of files, folders (with subfolders), patterns such as "a/**/*.png", or the number of a camera.

    The content of `out` is left out. Links to images keep their names. UserError for a camera together with something else.
    """
    found, roots, out = Inputs(), [], Path(os.path.abspath(out))
    own = (out / "pictures", out / "maps")
    for text in given:
        path = Path(os.path.abspath(os.path.expanduser(text)))
        if os.path.isdir(path):
            root, reason = path, "there is no image or video in it"
            tree = walk_images(root, KNOWN, (out, *own))
        elif os.path.exists(path):
            root, tree, reason = path.parent, Tree([path.name]), ""
        elif text.isdigit():
            found.camera = int(text)
            continue
        elif glob.has_magic(text):
            (root, tree), reason = match(path, (out, *own)), "the pattern matches no image or video"
        else:
            root, tree, reason = path, Tree(), "there is no such file or folder"
        for why, names in tree.left_out.items():
            found.left_out[why] += names
        if tree.images:
            roots.append(root)
            found.paths += [root / name for name in tree.images]
        else:
            found.missing.append((text, "; ".join([reason, *tree.describe_left_out()])))
    found.paths = list(dict.fromkeys(found.paths))
    if found.camera is not None and len(given) > 1:
        raise UserError("a camera is predicted by itself: leave out the other inputs")
    if roots:
        try:
            found.folder = Path(os.path.commonpath(roots))
        except ValueError:
            raise UserError("the inputs lie on several drives: predict each drive by itself") from None
    return found


def match(pattern: Path, without: Collection[Path]) -> tuple[Path, Tree]:
    """The folder before a pattern's first wild card, and what matches below it, except in the folders `without`."""
    root, tree = pattern, Tree()
    while glob.has_magic(str(root)):
        root = root.parent
    for path in map(Path, sorted(glob.glob(str(pattern), recursive=True))):
        name = path.relative_to(root).as_posix()
        if any(root in folder.parents and folder in path.parents for folder in without):
            tree.left_out["pictures of this output"].append(name)
        elif has_extension(path, KNOWN) and path.is_file():
            tree.images.append(name)
        elif path.is_file():
            tree.left_out[f"of type {path.suffix.lower()}"].append(name)
    return root, tree


def has_extension(path: Path, extensions: Collection[str]) -> bool:
    return path.suffix.lower() in extensions


def items(inputs: Inputs, folder: Path | None, done: Collection[str], frames: int | None) -> Iterator[Item]:
    """The images that are not in `done`, in order. Names are relative to `folder`; a frame is NAME#NUMBER, counted from 0.

    frames: how many a camera gives, None: all.
    """
    for name, source in inputs.named(folder).items():
        if isinstance(source, int):
            numbers = [int(file.removeprefix(f"{name}#")) for file in done if file.startswith(f"{name}#")]
            yield from islice(frame_items(source, name, max(numbers, default=-1) + 1, done), frames)
        elif source.suffix.lower() in VIDEO_EXTENSIONS:
            yield from frame_items(str(source), name, 0, done)
        elif name not in done:
            yield Item(name, partial(read_first, source, name, inputs.left_out))


def read_first(path: Path, name: str, left_out: dict[str, list[str]]) -> np.ndarray:
    """The image; a file with further pages or frames is noted."""
    rgb = read_rgb(path)
    if count_frames(path) > 1:
        left_out[FURTHER_PAGES].append(name)
    return rgb


def frame_items(source: str | int, name: str, first: int, done: Collection[str]) -> Iterator[Item]:
    """The frames from `first` that are not in `done`. The last item fails if there was none, or if a camera stopped."""
    is_camera, number = isinstance(source, int), first
    try:
        capture = cv2.VideoCapture(source)
        while capture.grab():
            if (file := f"{name}#{number}") not in done:
                success, frame = capture.retrieve()  # h x w x 3 uint8 BGR
                read = partial(cv2.cvtColor, frame, cv2.COLOR_BGR2RGB) if success else partial(fail, f"{file} is damaged")
                yield Item(file, read)
            number += 1
        capture.release()
    except (cv2.error, UnicodeError):  # OpenCV cannot open a file of this name or content
        number = first
    if number > first and not is_camera:
        return
    if number > first:
        problem = f"camera {source} gives no more images"
    elif is_camera:
        problem = f"camera {source} cannot be opened: check its connection and its number"
    else:
        problem = f"{source}: is not a video that OpenCV can read"
    yield Item(name, partial(fail, problem))


def fail(message: str) -> np.ndarray:
    raise UserError(message)
