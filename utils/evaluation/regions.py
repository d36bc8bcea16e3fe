"""Regions: where an anomaly map lies above a pixel threshold, as connected pieces. Nothing here imports torch."""

import math
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Region:
    """A connected piece of the map, diagonal neighbours included. Lengths are pixels of the map that it was found in."""

    x: int  # of the box's upper left corner
    y: int
    width: int
    height: int
    area: int
    share: float  # of the area that is inspected
    peak: float  # largest value of the map
    mean: float


def find_regions(
    anomaly_map: np.ndarray, threshold: float, min_area: float = 0.0, inspected: float = 1.0
) -> tuple[np.ndarray, list[Region]]:
    """The number of each pixel's region, HxW int32, from 1, or 0 outside of them; and the regions, the largest first.

    anomaly_map: HxW float32. A region's values are above `threshold`, and its area is at least the share `min_area` of what is
    inspected, which is the share `inspected` of the map: areas count relative to it.
    Regions of one area go from top to bottom, then from left to right.
    """
    labels, boxes, sizes = pieces(anomaly_map, threshold)
    numbers, found = np.zeros_like(labels), []
    for number in np.lexsort((boxes[:, 0], boxes[:, 1], -sizes)):
        if sizes[number] < smallest_area(labels.size * inspected, min_area):
            break
        x, y, width, height = map(int, boxes[number])
        inside = labels[y : y + height, x : x + width] == number + 1
        numbers[y : y + height, x : x + width][inside] = len(found) + 1
        values = anomaly_map[y : y + height, x : x + width][inside]
        area = int(sizes[number])
        found.append(
            Region(x, y, width, height, area, area / (labels.size * inspected), float(values.max()), float(values.mean()))
        )
    return numbers, found


def region_level(anomaly_map: np.ndarray, min_area: float = 0.0, inspected: float = 1.0) -> float:
    """The lowest pixel threshold at which `find_regions` finds nothing: a value of the map HxW."""
    needed = smallest_area(anomaly_map.size * inspected, min_area)
    values = np.sort(anomaly_map, axis=None)[::-1]
    low, high = needed - 1, len(values) - 1  # fewer than `needed` pixels lie above values[needed - 1]
    while low < high:  # the last place whose value leaves no region; regions only grow as the threshold falls
        middle = (low + high + 1) // 2
        if (pieces(anomaly_map, values[middle])[2] >= needed).any():
            high = middle - 1
        else:
            low = middle
    return float(values[low])


def smallest_area(pixels: float, min_area: float) -> int:
    return max(1, math.ceil(min_area * pixels - 1e-9))


def pieces(anomaly_map: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The connected pieces above the threshold: labels HxW from 1, boxes (x, y, width, height) Nx4, areas N."""
    above = (anomaly_map > threshold).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8, ltype=cv2.CV_32S)
    return labels, stats[1:, :4], stats[1:, cv2.CC_STAT_AREA]
