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


def colours(normalised: np.ndarray) -> np.ndarray:
    """HxW in 0..1 as HxWx3 uint8 RGB, from blue to red."""
    return np.ascontiguousarray(cv2.applyColorMap((normalised * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1])


def heat_map(image: np.ndarray, normalised: np.ndarray) -> np.ndarray:
    """The map in colours, half and half over the image. normalised: HxW in 0..1; image and result: HxWx3 uint8 RGB."""
    return cv2.addWeighted(colours(normalised), 0.5, image, 0.5, 0)


def dim(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The picture HxWx3 uint8 RGB, darker outside of a region of interest, h x w bool."""
    inside = cv2.resize(inside.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    return np.where(inside[..., None], picture, picture // 3)


def outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture HxWx3 uint8 RGB with a white line, dark at its sides, round each piece of the mask, h x w of {0, 1}."""
    size = picture.shape[1::-1]
    small = cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA)  # not 0 where any of a region is
    contours, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    picture, width = np.ascontiguousarray(picture), max(1, round(max(size) / 400))
    cv2.drawContours(picture, contours, -1, (0, 0, 0), 3 * width)
    return cv2.drawContours(picture, contours, -1, (255, 255, 255), width)


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture HxWx3 uint8 RGB above a strip with the text, of ASCII letters, as large as fits."""
    height = 24
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    size = min(0.5, 0.5 * (picture.shape[1] - 8) / max(1, width))
    strip = np.full((height, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([picture, strip])


def save_picture(folder: str | Path, name: str | PathLike, image: np.ndarray) -> None:
    """image: HxWx3 uint8 RGB, written as JPEG to folder/name; see write_below."""
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    write_below(folder, name, lambda file: file.write(encoded.tobytes()))
