"""Heat maps: how an anomaly map is drawn over its image, the same everywhere. Nothing here needs PyTorch."""

from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from utils.files import write_below


def normalise(anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """HxW scores as 0..1, clipped; a flat map (high not above low) is all 0."""
    if high <= low:
        return np.zeros_like(anomaly_map)
    return np.clip((anomaly_map - low) / (high - low), 0, 1)


def heat_map(image: np.ndarray, normalised: np.ndarray) -> np.ndarray:
    """The map in colours, half and half over the image. normalised: HxW in 0..1; image and result: HxWx3 uint8 RGB."""
    colours = cv2.applyColorMap((normalised * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return cv2.addWeighted(np.ascontiguousarray(colours), 0.5, image, 0.5, 0)


def save_picture(folder: str | Path, name: str | PathLike, image: np.ndarray) -> None:
    """image: HxWx3 uint8 RGB, written as JPEG to folder/name; see write_below."""
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    write_below(folder, name, lambda file: file.write(encoded.tobytes()))
