"""Where images come from: files, folders, patterns, frames of a video, of a camera or of a stream."""

import glob
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
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
STREAMS = ("rtsp://", "rtsps://", "http://", "https://")
PAUSES = (1, 2, 4, 8)  # seconds before each attempt to connect a lost stream again
LOOK = 1  # seconds between two looks at a watched folder
PATIENCE = 10_000  # milliseconds for a stream to answer
KNOWN = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS


@dataclass(frozen=True)
class Item:
    """One image to predict: its name in scores.csv, and how to read it (h x w x 3 uint8 RGB; raises UserError)."""

    file: str
    read: Callable[[], np.ndarray]
    class_name: str | None = None  # where it is known


@dataclass
class Inputs:
    """What the user asked for: images and videos, or one camera or stream."""

    paths: list[Path] = field(default_factory=list)  # absolute, in order, without duplicates
    folder: Path | None = None  # holds all paths; None for a camera
    camera: int | str | None = None  # its number, or a stream's address
    watched: Path | None = None  # absolute: a folder whose images are taken as they come
    connections: int = 0  # of a live stream, that gave frames
    missing: list[tuple[str, str]] = field(default_factory=list)  # inputs without an image, and why
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # names by the reason

    @property
    def is_live(self) -> bool:
        """Whether images come one by one, without an end."""
        return self.camera is not None or self.watched is not None

    def named(self, folder: Path | None) -> dict[str, Path | int | str]:
        """The paths by their names relative to `folder`, or the camera by its name."""
        if self.camera is not None:
            return {camera_name(self.camera): self.camera}
        return {path.relative_to(folder).as_posix(): path for path in self.paths}


def watch_folder(given: Sequence[str]) -> Inputs:
    """The inputs of one folder that is watched. Raises UserError for anything else."""
    if len(given) != 1 or not Path(given[0]).expanduser().is_dir():
        raise UserError(f"--watch takes one folder that is there, not {' '.join(given)}")
    folder = Path(os.path.abspath(os.path.expanduser(given[0])))
    return Inputs(folder=folder, watched=folder)


def find_inputs(given: Sequence[str], out: str | Path) -> Inputs:
    """Find the images of files, folders (with subfolders), patterns such as "a/**/*.png", the number of a camera, or a
    stream's address.

    The content of `out` is left out. Links to images keep their names. UserError for a camera together with something else.
    """
    found, roots, out = Inputs(), [], Path(os.path.abspath(out))
    own = (out / "pictures", out / "masks", out / "maps")
    for text in given:
        path = Path(os.path.abspath(os.path.expanduser(text)))
        scheme, mark, rest = text.partition("://")
        if (address := f"{scheme.lower()}{mark}{rest}").startswith(STREAMS):
            found.camera = address
            continue
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
        raise UserError("a camera or a stream is predicted by itself: leave out the other inputs")
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
        if not isinstance(source, Path):
            numbers = [int(file.removeprefix(f"{name}#")) for file in done if file.startswith(f"{name}#")]
            yield from islice(frame_items(source, name, max(numbers, default=-1) + 1, done, inputs), frames)
        elif source.suffix.lower() in VIDEO_EXTENSIONS:
            yield from frame_items(source, name, 0, done, inputs)
        elif name not in done:
            yield Item(name, partial(read_first, source, name, inputs.left_out))


def watched_items(inputs: Inputs, out: Path, done: Collection[str]) -> Iterator[Item]:
    """The images that are not in `done`, as they come; one is taken once it stayed the same between two looks, else it may be
    half written. It may be moved away after that.
    """
    taken, seen = set(done), {}
    out = Path(os.path.abspath(out))
    while True:
        for name in walk_images(inputs.watched, IMAGE_EXTENSIONS, (out,)).images:
            path = inputs.watched / name
            with suppress(OSError):  # moved away between the two lines
                status = path.stat()
                before, seen[name] = seen.get(name), (status.st_size, status.st_mtime_ns)
                if name not in taken and before == seen[name]:
                    taken.add(name)
                    yield Item(name, partial(read_first, path, name, inputs.left_out))
        time.sleep(LOOK)


def read_first(path: Path, name: str, left_out: dict[str, list[str]]) -> np.ndarray:
    """The image; a file with further pages or frames is noted."""
    rgb = read_rgb(path)
    if count_frames(path) > 1:
        left_out[FURTHER_PAGES].append(name)
    return rgb


def frame_items(source: Path | int | str, name: str, first: int, done: Collection[str], inputs: Inputs) -> Iterator[Item]:
    """The frames from `first` that are not in `done`. The last item fails if there was none, or if a camera stopped."""
    is_video, number = isinstance(source, Path), first
    try:
        for capture in grabbed(source, inputs):
            if (file := f"{name}#{number}") not in done:
                success, frame = capture.retrieve()  # h x w x 3 uint8 BGR
                read = partial(cv2.cvtColor, frame, cv2.COLOR_BGR2RGB) if success else partial(fail, f"{file} is damaged")
                yield Item(file, read)
            number += 1
    except (cv2.error, UnicodeError):  # OpenCV cannot open a file of this name or content
        number = first
    if number > first and is_video:
        return
    what = "stream" if isinstance(source, str) else f"camera {source}"
    if number > first:
        problem = f"{what} gives no more images"
    elif is_video:
        problem = f"{source}: is not a video that OpenCV can read"
    else:
        problem = f"{what} cannot be opened: check its connection and its {'address' if what == 'stream' else 'number'}"
    yield Item(name, partial(fail, problem))


def grabbed(source: Path | int | str, inputs: Inputs) -> Iterator[cv2.VideoCapture]:
    """The source, each time it has a new frame. A live stream that stops is connected again, and its connections are counted."""
    if not isinstance(source, str):
        options = (source if isinstance(source, int) else str(source),)
    else:
        options = (source, cv2.CAP_FFMPEG, [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, PATIENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, PATIENCE])
    pauses = [0]
    while pauses:
        time.sleep(pauses.pop(0))
        capture, answered = cv2.VideoCapture(*options), False
        is_live = isinstance(source, str) and capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0  # no file on a server
        while capture.grab():
            inputs.connections += is_live and not answered
            answered = True
            yield capture
        capture.release()
        if answered:
            pauses = list(PAUSES) if is_live else []


def camera_name(camera: int | str) -> str:
    """Of a stream without user, password and query, as a file may be called."""
    if isinstance(camera, int):
        return f"camera{camera}"
    return re.sub(r"[^\w.-]+", "_", re.sub(r"^\w+://(?:[^/@]*@)?", "", camera).partition("?")[0]).strip("_.")


def fail(message: str) -> np.ndarray:
    raise UserError(message)
