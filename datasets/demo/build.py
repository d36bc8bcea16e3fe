"""The demo set: draws each image, and builds the folder in MVTec layout."""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.demo.flaws import Flaw
from datasets.demo.objects import cable, capsule, circuit, nut
from datasets.demo.surface import SIZE, Surface, shade
from datasets.demo.textures import brick, grass, gravel
from datasets.lists import lists_from_tree, write_list
from utils.errors import UserError

FORMAT = 2  # version of the pictures: increase it when they change
MADE_BY = "made_by.json"
GOOD = "good"
VISIBLE = 6 / 255  # a pixel counts as changed when a channel differs by more than this
SMALLEST = 30  # pixels of the smallest mask

Draw = Callable[[np.random.Generator, Flaw | None], Surface]
CLASSES: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "brick": (brick, ("crack", "smear", "stain")),
    "cable": (cable, ("cut", "insulation", "strands")),
    "capsule": (capsule, ("crack", "dent", "print")),
    "circuit": (circuit, ("missing", "shifted", "solder")),
    "grass": (grass, ("bare", "coin", "dry")),
    "gravel": (gravel, ("chip", "oil", "sand")),
    "nut": (nut, ("chip", "rust", "scratch")),
}


@dataclass(frozen=True)
class Item:
    """One image: the `index`-th of `count` of its kind. Among defects the first is the subtlest, the last the most obvious."""

    clsname: str
    split: str
    kind: str
    index: int
    count: int

    @property
    def filename(self) -> str:
        return f"{self.clsname}/{self.split}/{self.kind}/{self.index:03d}.png"

    @property
    def maskname(self) -> str | None:
        return None if self.kind == GOOD else f"{self.clsname}/ground_truth/{self.kind}/{self.index:03d}_mask.png"

    def stream(self, seed: int, *purpose: str | int) -> np.random.Generator:
        """Random numbers for one purpose in one image, independent of what was drawn before."""
        names = (seed, self.clsname, self.split, self.kind, self.index, *purpose)
        return np.random.default_rng([name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names])


def items(train: int = 40, good: int = 15, defective: int = 25) -> Iterator[Item]:
    """The images of the set. Counts are per class; `defective` is distributed over the class's kinds."""
    for clsname, (_, kinds) in CLASSES.items():
        folders = [("train", GOOD, train), ("test", GOOD, good)]
        folders += [("test", kind, len(range(number, defective, len(kinds)))) for number, kind in enumerate(kinds)]
        for split, kind, count in folders:
            yield from (Item(clsname, split, kind, index, count) for index in range(count))


# --- one image ---


def render(item: Item, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The image before sensor noise, and the same scene without its defect; SIZE x SIZE x 3, RGB in 0..1."""
    draw, _ = CLASSES[item.clsname]

    def photograph(flaw: Flaw | None) -> np.ndarray:
        # Fresh streams for each picture, so that both show the same part under the same light.
        surface = draw(item.stream(seed, "scene"), flaw)
        return through_lens(shade(surface, item.stream(seed, "light")), item.stream(seed, "lens"))

    clean = photograph(None)
    if item.kind == GOOD:
        return clean, clean
    strength = 0.4 + 0.6 * item.index / max(item.count - 1, 1)
    for attempt in range(20):
        flawed = photograph(Flaw(item.kind, strength, item.stream(seed, "flaw", attempt)))
        if changed_pixels(flawed, clean).sum() >= SMALLEST:
            return flawed, clean
    raise RuntimeError(f"{item.filename}: no visible defect in 20 attempts")


def through_lens(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, slight blur and vignetting."""
    gain = rng.uniform(0.91, 1.08) * (1 + rng.normal(0, 0.008, 3))
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32) ** 2
    vignette = 1 - 0.03 * (axis[:, None] + axis)
    blurred = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.42, 0.6))
    return np.clip(blurred * vignette[..., None] * gain.astype(np.float32), 0, 1)


def changed_pixels(flawed: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The mask of a defect, H x W bool: every pixel that it visibly changed, with gaps of a few pixels closed."""
    changed = np.abs(flawed - clean).max(axis=2) > VISIBLE
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, disk).astype(bool)


def with_noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as uint8 with sensor noise, which grows with brightness and is mostly common to the channels."""
    common, own = (rng.standard_normal((SIZE, SIZE, channels), dtype=np.float32) for channels in (1, 3))
    grain = (common + own / 2) * np.sqrt(picture + np.float32(0.1)) * np.float32(rng.uniform(0.004, 0.008))
    return np.round(np.clip(picture + grain, 0, 1) * 255).astype(np.uint8)


def draw_item(item: Item, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A finished image, SIZE x SIZE x 3 uint8 RGB, and its mask, SIZE x SIZE bool, or None for a good one."""
    flawed, clean = render(item, seed)
    mask = None if item.kind == GOOD else changed_pixels(flawed, clean)
    return with_noise(flawed, item.stream(seed, "noise")), mask


# --- the folder ---


def build_demo(out: Path, seed: int = 0, train: int = 40, good: int = 15, defective: int = 25) -> bool:
    """Make the set in folder `out`, completely or not at all; False if it exists already. Counts are per class.

    UserError if `out` holds anything else, or cannot be written.
    """
    if seed < 0:
        raise UserError(f"the seed is {seed}; it must be 0 or more")
    wanted = list(items(train, good, defective))
    names = [name for item in wanted for name in (item.filename, item.maskname) if name] + ["train.json", "test.json"]
    made_by = {"seed": seed, "format": FORMAT, "files": len(names)}
    out = Path(os.path.abspath(out))
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        with contextlib.suppress(OSError, ValueError):  # no made_by.json, or not one of ours
            found = json.loads((out / MADE_BY).read_text(encoding="utf-8"))
            if found == made_by and all((out / name).is_file() for name in names):
                return False
        raise UserError(f"{out} holds something other than the whole demo set of seed {seed}: remove it, or give another --out")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_set(unfinished, wanted, seed)
        (unfinished / MADE_BY).write_text(json.dumps(made_by) + "\n", encoding="utf-8")
        unfinished.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def write_set(folder: Path, wanted: list[Item], seed: int) -> None:
    """Write images, masks (0 or 255) and the two lists."""
    for item in tqdm(wanted, desc="demo set", unit="image", disable=None):
        image, mask = draw_item(item, seed)
        pictures = {item.filename: image[..., ::-1]}  # BGR
        if mask is not None:
            pictures[item.maskname] = mask * np.uint8(255)
        for name, picture in pictures.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    for name, records in zip(("train.json", "test.json"), lists_from_tree(folder), strict=True):
        write_list(records, folder / name)
