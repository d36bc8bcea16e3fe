"""Pictures of an evaluation: where the model looks and how sure it is."""

from pathlib import Path

import cv2
import numpy as np

from datasets.base import ImageDataset
from datasets.images import shrink
from utils.evaluation.evaluate import Evaluation
from utils.evaluation.naming import output_names
from utils.report.drawing import dim, heat_map, normalise, save_picture

LONGEST = 2048  # pixels of the longer side, where photographs in tiles have larger maps


def save_pictures(
    style: str,
    evaluation: Evaluation,
    data: ImageDataset,
    save_dir: str | Path,
    max_score: float | None = None,
    min_score: float | None = None,
) -> None:
    """Draw every image of an evaluation into `save_dir`, at the map's size, or with LONGEST pixels on its longer side.

    style: "vis_compound", <name>.jpg with image, mask, map on the common scale and map on its own scale side by side, or
    "vis_single", <name>_image.jpg and <name>_map.jpg on the common scale: min_score to max_score, None: the limits of all maps.
    """
    low = evaluation.limits[0] if min_score is None else min_score
    high = evaluation.limits[1] if max_score is None else max_score
    for position, name in enumerate(output_names(evaluation.filenames)):
        index, anomaly_map = evaluation.indices[position], shrink(evaluation.map(position), LONGEST)
        size = anomaly_map.shape[1::-1]
        image = cv2.resize(data.read_seen(int(index)), size, interpolation=cv2.INTER_AREA)
        if (inside := evaluation.inside(position)) is not None:
            image = dim(image, inside)
        common = heat_map(image, normalise(anomaly_map, low, high))
        if style == "vis_single":
            save_picture(save_dir, f"{name}_image.jpg", image)
            save_picture(save_dir, f"{name}_map.jpg", common)
            continue
        own = heat_map(image, normalise(anomaly_map, float(anomaly_map.min()), float(anomaly_map.max())))
        mask = cv2.resize(evaluation.mask(position), size, interpolation=cv2.INTER_NEAREST)
        truth = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        save_picture(save_dir, f"{name}.jpg", np.hstack([image, truth, common, own]))
