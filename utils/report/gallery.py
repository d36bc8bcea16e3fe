"""The pictures that a report shows of an evaluation: few, chosen by image score, and bounded in bytes."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.base import ImageDataset
from utils.errors import UserError
from utils.evaluation.evaluate import GALLERY, Evaluation, score_columns
from utils.report.drawing import heat_map, normalise

PICKS = ("most", "least", "good_highest", "defective_lowest")
PER_PICK = 8  # images a pick and class, where there are few classes
IMAGES = 300  # about so many images in all, where there are many
QUALITY = 85  # of a JPEG
LARGEST = 256  # pixels, the longer side of a picture
ROOM = 13_000_000  # bytes of all pictures on a page, which base64 makes a third larger: 17.3 of the 20 MB
OVERHEAD = 4_000  # bytes of text on the page for an image


def headline_score(metrics: dict[str, Any], key_metric: str | None) -> str | None:
    """The image score to quote: the key metric's, else max, else the first configured; None: pixel metrics only."""
    names = list(score_columns(metrics))
    key = key_metric.rsplit("_", 2)[1] if key_metric else None
    return next((name for name in (key, "max", *names) if name in names), None)


def save_gallery(
    result_dir: str | Path, evaluation: Evaluation, data: ImageDataset, score: str | None, metrics: dict[str, Any]
) -> None:
    """Write <result_dir>/report_gallery, gallery.json and its pictures, in the place of an earlier one.

    score: the image score that decides (headline_score; None: the map's largest value). metrics: `evaluator.metrics`, for the
    score's averaging window. An image's pictures, at the map's size up to 256 pixels, are itself, its heat map on a scale
    common to all and, where it is not empty, its mask. Raises UserError naming a file that cannot be written or read.
    """
    key = score_columns(metrics).get(score, ("max", None))
    scores = evaluation.scores([key])[key]
    chosen = choose(scores, evaluation.labels, evaluation.clsnames)
    folder = Path(result_dir) / GALLERY
    new = folder.with_name(f".{GALLERY}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        content = {"score": score or "max", **write_pictures(new, evaluation, data, scores, chosen)}
        (new / "gallery.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        replace_folder(new, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def choose(scores: np.ndarray, labels: np.ndarray, clsnames: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """By class, sorted, and by pick the positions of its images, the most telling first; equal scores in the order of the set."""
    clsnames = np.asarray(clsnames)
    classes = sorted(set(clsnames.tolist()))
    per_pick = max(1, min(PER_PICK, IMAGES // (len(PICKS) * len(classes))))
    chosen = {}
    for clsname in classes:
        members = np.flatnonzero(clsnames == clsname)
        falling = members[np.argsort(-scores[members], kind="stable")]
        rising = members[np.argsort(scores[members], kind="stable")]
        picks = (falling, rising, falling[labels[falling] == 0], rising[labels[rising] == 1])
        chosen[clsname] = {name: pick[:per_pick].tolist() for name, pick in zip(PICKS, picks, strict=True)}
    return chosen


def write_pictures(
    folder: Path, evaluation: Evaluation, data: ImageDataset, scores: np.ndarray, chosen: dict[str, dict[str, list[int]]]
) -> dict[str, Any]:
    """Write the chosen images' pictures as far as they fit on a page; returns what gallery.json says of them."""
    low, high = evaluation.limits

    def draw_at(position: int) -> dict[str, bytes]:
        rgb = data.read_rgb(int(evaluation.indices[position]))
        return draw(rgb, evaluation.mask(position), normalise(evaluation.map(position), low, high))

    picks, drawn = fill(chosen, draw_at)
    ranks = rank(scores, evaluation.clsnames)
    images = []
    for number, (position, pictures) in enumerate(drawn.items()):
        names = {kind: f"{number:04d}_{kind}{'.png' if kind == 'mask' else '.jpg'}" for kind in pictures}
        for kind, name in names.items():
            (folder / name).write_bytes(pictures[kind])
        images.append(
            {
                "filename": str(evaluation.filenames[position]),
                "label": int(evaluation.labels[position]),
                "score": float(scores[position]),
                "rank": int(ranks[position]),
                "pictures": names,
            }
        )
    numbers = {position: number for number, position in enumerate(drawn)}
    classes = {}
    for clsname, shown in picks.items():
        labels = evaluation.labels[evaluation.clsnames == clsname]
        classes[clsname] = {"good": int((labels == 0).sum()), "defective": int((labels == 1).sum())}
        classes[clsname]["picks"] = {pick: [numbers[position] for position in positions] for pick, positions in shown.items()}
    left_out = count(chosen) - count(picks)
    return {"low": low, "high": high, "left_out": left_out, "classes": classes, "images": images}


def count(picks: dict[str, dict[str, list[int]]]) -> int:
    return sum(len(positions) for of_class in picks.values() for positions in of_class.values())


def fill(
    chosen: dict[str, dict[str, list[int]]], draw_at: Callable[[int], dict[str, bytes]]
) -> tuple[dict[str, dict[str, list[int]]], dict[int, dict[str, bytes]]]:
    """Draw until the page's room is used up: the first of every class and pick, then the second of each, and so on.

    Returns what is shown, as `chosen`, and by position the pictures. An image in two picks is drawn once and takes room twice.
    """
    shown = {clsname: {pick: [] for pick in picks} for clsname, picks in chosen.items()}
    drawn: dict[int, dict[str, bytes]] = {}
    room = ROOM
    for place, (clsname, picks), pick in product(range(PER_PICK), chosen.items(), PICKS):
        if place >= len(picks[pick]):
            continue
        position = picks[pick][place]
        pictures = drawn.get(position) or draw_at(position)
        room -= sum(map(len, pictures.values())) + OVERHEAD
        if room < 0:
            break
        drawn[position] = pictures
        shown[clsname][pick].append(position)
    return shown, drawn


def rank(scores: np.ndarray, clsnames: np.ndarray) -> np.ndarray:
    """N, from 1 for the most anomalous of its class."""
    ranks = np.zeros(len(scores), dtype=np.int64)
    for clsname in set(clsnames.tolist()):
        members = np.flatnonzero(clsnames == clsname)
        ranks[members[np.argsort(-scores[members], kind="stable")]] = np.arange(1, len(members) + 1)
    return ranks


def draw(rgb: np.ndarray, mask: np.ndarray, normalised: np.ndarray) -> dict[str, bytes]:
    """The encoded pictures of an image: "image", "map" and, unless it is empty, "mask".

    rgb: hxwx3 uint8, of any size; mask: HxW of {0, 1}; normalised: HxW in 0..1, the anomaly map.
    """
    h, w = normalised.shape
    shrink = min(1.0, LARGEST / max(h, w))
    size = (max(1, round(w * shrink)), max(1, round(h * shrink)))
    image = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    pictures = {"image": encode(image, ".jpg"), "map": encode(heat_map(image, resize(normalised, size)), ".jpg")}
    if mask.any():
        pictures["mask"] = encode((resize(mask * np.float32(255), size) > 0).astype(np.uint8) * 255, ".png")
    return pictures


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def encode(picture: np.ndarray, ending: str) -> bytes:
    """picture: HxWx3 RGB as JPEG or HxW of {0, 255} as PNG, uint8."""
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if ending == ".jpg" else [cv2.IMWRITE_PNG_BILEVEL, 1]
    _, encoded = cv2.imencode(ending, picture[..., ::-1] if picture.ndim == 3 else picture, options)
    return encoded.tobytes()


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which may not be there: a reader sees all of either, or nothing."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
