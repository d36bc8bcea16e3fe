"""Pictures of an evaluation: where the model looks and how sure it is."""

from pathlib import Path

import cv2
import numpy as np

from datasets.base import ImageDataset
from utils.evaluation import Evaluation
from utils.files import write_atomically
from utils.naming import output_names


def normalise(anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """HxW scores as 0..1, clipped; a flat map (high not above low) is all 0."""
    if high <= low:
        return np.zeros_like(anomaly_map)
    return np.clip((anomaly_map - low) / (high - low), 0, 1)


def heat_map(image: np.ndarray, normalised: np.ndarray) -> np.ndarray:
    """The map in colours, half and half over the image. normalised: HxW in 0..1; image and result: HxWx3 uint8 RGB."""
    colours = cv2.applyColorMap((normalised * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return cv2.addWeighted(np.ascontiguousarray(colours), 0.5, image, 0.5, 0)


def save_pictures(
    style: str,
    evaluation: Evaluation,
    data: ImageDataset,
    save_dir: str | Path,
    max_score: float | None = None,
    min_score: float | None = None,
) -> None:
    """Draw every image of an evaluation into `save_dir`, at the map's size.

    style: "vis_compound", <name>.jpg with image, mask, map on the common scale and map on its own scale side by side, or
    "vis_single", <name>_image.jpg and <name>_map.jpg on the common scale. The common scale goes from min_score to max_score; None
    stands for the smallest and largest value over all maps.
    """
    low = float(evaluation.maps.min()) if min_score is None else min_score
    high = float(evaluation.maps.max()) if max_score is None else max_score
    names = output_names(evaluation.filenames)
    for index, anomaly_map, mask, name in zip(evaluation.indices, evaluation.maps, evaluation.masks, names, strict=True):
        h, w = anomaly_map.shape
        image = cv2.resize(data.read_rgb(int(index)), (w, h), interpolation=cv2.INTER_AREA)
        common = heat_map(image, normalise(anomaly_map, low, high))
        if style == "vis_single":
            save_picture(Path(save_dir) / f"{name}_image.jpg", image)
            save_picture(Path(save_dir) / f"{name}_map.jpg", common)
            continue
        own = heat_map(image, normalise(anomaly_map, float(anomaly_map.min()), float(anomaly_map.max())))
        truth = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        save_picture(Path(save_dir) / f"{name}.jpg", np.hstack([image, truth, common, own]))


def save_picture(path: Path, image: np.ndarray) -> None:
    """image: HxWx3 uint8 RGB, written as JPEG."""
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    write_atomically(path, lambda file: file.write(encoded.tobytes()))
