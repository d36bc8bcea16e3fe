"""Where images come from: files, folders, patterns, frames of a video or of a camera."""

import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from datasets.images import read_rgb
from datasets.lists import IMAGE_EXTENSIONS
from utils.errors import UserError

VIDEO_EXTENSIONS = {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}
KNOWN_EXTENSIONS = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS


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
    for text in given:
        path = Path(os.path.abspath(os.path.expanduser(text)))
        if path.is_dir():
            root, paths, reason = path, walk(path, out), "there is no image or video in it"
        elif path.exists():
            root, paths, reason = path.parent, [path], ""
        elif text.isdigit():
            found.camera = int(text)
            continue
        elif glob.has_magic(text):
            root, paths, reason = *match(path, out), "the pattern matches no image or video"
        else:
            root, paths, reason = path, [], "there is no such file or folder"
        if paths:
            roots.append(root)
            found.paths += paths
        else:
            found.missing.append((text, reason))
    found.paths = list(dict.fromkeys(found.paths))
    if found.camera is not None and len(given) > 1:
        raise UserError("a camera is predicted by itself: leave out the other inputs")
    if roots:
        try:
            found.folder = Path(os.path.commonpath(roots))
        except ValueError:
            raise UserError("the inputs lie on several drives: predict each drive by itself") from None
    return found


def walk(folder: Path, out: Path) -> list[Path]:
    """Images and videos in a folder and its subfolders, sorted, without hidden ones and the content of `out`."""
    paths = []
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(current, name) != out)
        paths += [Path(current, name) for name in sorted(files) if not name.startswith(".")]
    return [path for path in paths if path.suffix.lower() in KNOWN_EXTENSIONS]


def match(pattern: Path, out: Path) -> tuple[Path, list[Path]]:
    """The folder before a pattern's first wild card, and the images and videos that match, sorted."""
    root = pattern
    while glob.has_magic(str(root)):
        root = root.parent
    paths = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    known = [path for path in paths if path.suffix.lower() in KNOWN_EXTENSIONS]
    return root, [path for path in known if path.is_file() and out not in path.parents]


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
            yield Item(name, partial(read_rgb, source))


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
