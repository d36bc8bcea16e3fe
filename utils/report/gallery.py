"""The pictures that a report shows of an evaluation: a fixed number a class, chosen by image score."""

import json
import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.base import ImageDataset
from datasets.images import shrink
from utils.errors import UserError
from utils.evaluation.calibration import Calibration
from utils.evaluation.decisions import Rule
from utils.evaluation.evaluate import GALLERY, Evaluation, score_columns
from utils.report.drawing import dim, heat_map, normalise, outline

PICKS = ("most", "least", "good_highest", "defective_lowest")
PER_PICK = 4  # images a pick and class
QUALITY = 85  # of a JPEG
LARGEST = 256  # pixels, the longer side of a picture


def headline_score(metrics: dict[str, Any], key_metric: str | None) -> str | None:
    """The image score to quote: the key metric's, else max, else the first configured; None if there are pixel metrics only."""
    names = list(score_columns(metrics))
    key = key_metric.rsplit("_", 2)[1] if key_metric else None
    return next((name for name in (key, "max", *names) if name in names), None)


def save_gallery(
    result_dir: str | Path,
    evaluation: Evaluation,
    data: ImageDataset,
    score: str | None,
    metrics: dict[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write <result_dir>/report_gallery: gallery.json and its pictures. Replaces an earlier gallery.

    score: the image score that decides (headline_score; None: the map's largest value). metrics: `evaluator.metrics`, for the
    score's averaging window. calibration: outlines regions, and gives heat maps their scale. Raises UserError naming a file that
    cannot be written or read.
    """
    key = score_columns(metrics).get(score, ("max", None))
    scores = evaluation.scores([key])[key]
    folder = Path(result_dir) / GALLERY
    new = folder.with_name(f".{GALLERY}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        content = {"score": score or "max", **write_pictures(new, evaluation, data, scores, calibration)}
        (new / "gallery.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        replace_folder(new, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_pictures(
    folder: Path, evaluation: Evaluation, data: ImageDataset, scores: np.ndarray, calibration: Calibration | None
) -> dict[str, Any]:
    """Write the pictures of the chosen images; returns what gallery.json says of them. scores: N."""
    labels, pooled = evaluation.labels, Rule.of(calibration) if calibration else Rule()
    low, high = pooled.scale or evaluation.limits
    classes, images = {}, []
    for clsname in sorted(set(evaluation.clsnames.tolist())):
        rule = Rule.of(calibration, clsname) if calibration and clsname in calibration.classes else pooled
        members = np.flatnonzero(evaluation.clsnames == clsname)
        falling = members[np.argsort(-scores[members], kind="stable")]
        rising = members[np.argsort(scores[members], kind="stable")]
        chosen = (falling, rising, falling[labels[falling] == 0], rising[labels[rising] == 1])
        picks = {pick: positions[:PER_PICK].tolist() for pick, positions in zip(PICKS, chosen, strict=True)}
        numbers = {}
        for position in dict.fromkeys(chain.from_iterable(picks.values())):
            numbers[position] = len(images)
            rgb, inside = data.read_seen(int(evaluation.indices[position])), evaluation.inside(position)
            rgb = rgb if inside is None else dim(rgb, inside)
            anomaly_map = evaluation.map(position)
            regions = rule.decide(float(scores[position]), anomaly_map, evaluation.inspected(position)).mask
            pictures = draw(rgb, evaluation.mask(position), normalise(anomaly_map, low, high), regions)
            names = {kind: f"{len(images):04d}_{kind}{'.png' if kind == 'mask' else '.jpg'}" for kind in pictures}
            for kind, name in names.items():
                (folder / name).write_bytes(pictures[kind])
            images.append(
                {
                    "filename": str(evaluation.filenames[position]),
                    "label": int(labels[position]),
                    "score": float(scores[position]),
                    "rank": int(np.flatnonzero(falling == position)[0]) + 1,
                    "pictures": names,
                }
            )
        good, defective = (int(np.count_nonzero(labels[members] == label)) for label in (0, 1))
        shown = {pick: [numbers[position] for position in positions] for pick, positions in picks.items()}
        classes[clsname] = {"good": good, "defective": defective, "picks": shown}
    return {"low": low, "high": high, "classes": classes, "images": images}


def draw(rgb: np.ndarray, mask: np.ndarray, normalised: np.ndarray, regions: np.ndarray | None = None) -> dict[str, bytes]:
    """The encoded pictures of an image, in its proportions, up to 256 pixels: "image", "map" and, unless it is empty, "mask".

    rgb: hxwx3 uint8, of any size; mask, regions: HxW uint8 of {0, 1}; normalised: HxW in 0..1, the anomaly map.
    """
    image = shrink(rgb, LARGEST)
    size = image.shape[1::-1]
    heat = heat_map(image, np.clip(cv2.resize(normalised.astype(np.float32), size, interpolation=cv2.INTER_AREA), 0, 1))
    if regions is not None:
        heat = outline(heat, regions)
    jpeg, bilevel = [cv2.IMWRITE_JPEG_QUALITY, QUALITY], [cv2.IMWRITE_PNG_BILEVEL, 1]
    pictures = {
        "image": cv2.imencode(".jpg", image[..., ::-1], jpeg)[1].tobytes(),
        "map": cv2.imencode(".jpg", heat[..., ::-1], jpeg)[1].tobytes(),
    }
    if mask.any():
        small_mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        pictures["mask"] = cv2.imencode(".png", (small_mask > 0) * np.uint8(255), bilevel)[1].tobytes()
    return pictures


def replace_folder(new: Path, folder: Path) -> None:
    """Replace `folder` by `new`. A reader sees all of either folder, or none."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
