"""Where images come from: files, folders, patterns, frames of a video or of a camera."""

import glob
import os
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.predict.images import read_rgb

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}  # as in datasets.lists, whose package needs torch
VIDEOS = {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}


@dataclass(frozen=True)
class Item:
    """One image to predict: its name in scores.csv, and how it is read (h x w x 3 uint8 RGB; raises UserError)."""

    file: str
    read: Callable[[], np.ndarray]


@dataclass
class Inputs:
    """What was asked for."""

    paths: list[Path] = field(default_factory=list)  # absolute, images and videos in order, each once
    folder: Path | None = None  # that holds them all; None for a camera
    camera: int | None = None
    missing: list[tuple[str, str]] = field(default_factory=list)  # inputs without an image, and why


def find_inputs(given: Sequence[str], out: str | Path) -> Inputs:
    """What files, folders (with their subfolders), patterns such as "a/**/*.png", or the number of a camera name.

    What lies in `out` is no input. Links are taken for what they point to and keep their names. Raises UserError for a camera
    beside something else.
    """
    found, roots, out = Inputs(), [], Path(os.path.abspath(out))
    for text in given:
        path = Path(os.path.abspath(text))
        if path.is_dir():
            root, paths = path, walk(path, out)
        elif path.exists():
            root, paths = path.parent, [path]
        elif text.isdigit():
            found.camera = int(text)
            continue
        else:
            root, paths = match(text, out)
        if paths:
            roots.append(root)
            found.paths += paths
        else:
            has_magic = glob.has_magic(text)
            if path.is_dir():
                reason = "there is no image or video in it"
            else:
                reason = "the pattern matches no image or video" if has_magic else "there is no such file or folder"
            found.missing.append((text, reason))
    found.paths = list(dict.fromkeys(found.paths))
    if found.camera is not None and len(given) > 1:
        raise UserError("a camera is predicted by itself: leave out the other inputs")
    if roots:
        try:
            found.folder = Path(os.path.commonpath(roots))
        except ValueError:
            raise UserError("the inputs lie on several drives: predict those of each drive by themselves") from None
    return found


def walk(folder: Path, out: Path) -> list[Path]:
    """Images and videos in a folder and below it, sorted; hidden ones and what lies in `out` are left out."""
    paths = []
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(current, name) != out)
        paths += [Path(current, name) for name in sorted(files) if is_named_like_input(name) and not name.startswith(".")]
    return paths


def match(pattern: str, out: Path) -> tuple[Path, list[Path]]:
    """The folder before a pattern's first wild card, and the images and videos that match, sorted."""
    root = Path(os.path.abspath(pattern))
    while glob.has_magic(str(root)):
        root = root.parent
    names = sorted(map(os.path.abspath, glob.glob(os.path.expanduser(pattern), recursive=True)))
    paths = (Path(name) for name in names if is_named_like_input(name) and os.path.isfile(name))
    return root, [path for path in paths if out not in path.parents]


def is_named_like_input(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES | VIDEOS


def items(inputs: Inputs, folder: Path | None, done: Container[str], last_frame: int, frames: int | None) -> Iterator[Item]:
    """What is not `done` yet, in order. Names are relative to `folder`; a frame is NAME#NUMBER, counted from 0.

    last_frame: the number of the last frame that a camera gave before, or -1; frames: how many it is to give, None: all.
    """
    if inputs.camera is not None:
        yield from camera_items(inputs.camera, last_frame + 1, frames)
    for path in inputs.paths:
        name = name_below(path, folder)
        if path.suffix.lower() in VIDEOS:
            yield from video_items(path, name, done)
        elif name not in done:
            yield Item(name, partial(read_rgb, path))


def name_below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def video_items(path: Path, name: str, done: Container[str]) -> Iterator[Item]:
    number = 0
    try:
        capture = cv2.VideoCapture(str(path))
        while capture.grab():
            if (file := f"{name}#{number}") not in done:
                there, frame = capture.retrieve()
                yield Item(file, partial(as_rgb, frame) if there else partial(fail, f"{path}: frame {number} is damaged"))
            number += 1
        capture.release()
    except (cv2.error, UnicodeError):  # such a name, or such a file
        number = 0
    if number == 0:
        yield Item(name, partial(fail, f"{path}: is not a video that OpenCV can read"))


def camera_items(index: int, first: int, frames: int | None) -> Iterator[Item]:
    """Frames as the camera gives them; the last item is its failure, where it stops by itself."""
    capture = cv2.VideoCapture(index)
    number = first
    while frames is None or number < first + frames:
        there, frame = capture.read()
        if not there:
            what = "gives no more images" if number > first else "cannot be opened: see that it is connected, and its number"
            yield Item(f"{camera_name(index)}#{number}", partial(fail, f"camera {index} {what}"))
            break
        yield Item(f"{camera_name(index)}#{number}", partial(as_rgb, frame))
        number += 1
    capture.release()


def camera_name(index: int) -> str:
    return f"camera{index}"


def as_rgb(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def fail(message: str) -> np.ndarray:
    raise UserError(message)
