"""The regions of a prediction in COCO's format, which annotation tools read."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.files import write_text
from utils.predict.outputs import Output, unique_name


def write_coco(output: Output) -> Path:
    """Write coco.json into the folder of a prediction, from its masks; returns its path. An image is named as in its table."""
    path = output.out / "coco.json"
    images, annotations = [], []
    for number, file in enumerate(sorted(output.done), start=1):
        mask = cv2.imread(str(output.out / "masks" / unique_name(file, ".png")), cv2.IMREAD_GRAYSCALE)  # h x w
        if mask is None:  # of a run without a pixel threshold
            continue
        images.append({"id": number, "file_name": file, "width": mask.shape[1], "height": mask.shape[0]})
        annotations += [{"id": 0, "image_id": number, **shape} for shape in shapes(mask)]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "anomaly"}]}
    write_text(path, json.dumps(content) + "\n")
    return path


def shapes(mask: np.ndarray) -> list[dict[str, Any]]:
    """Box, area and outline, through the centres of its pixels, of each piece of a mask, h x w uint8."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = []
    for number in range(1, count):
        x, y, width, height, area = map(int, stats[number])
        piece = (labels[y : y + height, x : x + width] == number).astype(np.uint8)
        contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        polygons = [contour.ravel().tolist() for contour in contours if len(contour) > 2]
        box = [x, y, width, height]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        found.append({"category_id": 1, "iscrowd": 0, "bbox": box, "area": area, "segmentation": polygons or [corners]})
    return found
