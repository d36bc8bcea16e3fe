"""The picture of a prediction: the image, and where it looks wrong."""

import numpy as np

from utils.evaluation.decisions import Decision, Rule
from utils.predict.batches import Result
from utils.predict.predictor import inside_at, whole_map
from utils.report.drawing import caption, dim, heat_map, normalise, outline


def draw(result: Result, decision: Decision, rule: Rule) -> np.ndarray:
    """Image and heat map side by side, with outlines of the regions, above score and decision: HxWx3 uint8 RGB.

    What is outside of the region of interest is dimmed.
    """
    size = result.picture.shape[:2]
    normalised = whole_map(normalise(result.anomaly_map, *scale_of(result, rule)), size, result.inside)
    picture = result.picture if result.inside is None else dim(result.picture, inside_at(result.inside, size))
    heat = heat_map(picture, normalised)
    if decision.mask is not None:
        heat = outline(heat, decision.mask)
    return caption(np.hstack([picture, heat]), decision_text(result, decision, rule))


def scale_of(result: Result, rule: Rule) -> tuple[float, float]:
    """Lowest and highest value of the colours: the rule's, else those of the map."""
    return rule.scale or (float(result.anomaly_map.min()), float(result.anomaly_map.max()))


def decision_text(result: Result, decision: Decision, rule: Rule) -> str:
    """What a picture says below the image."""
    parts = [decision.verdict, f"score {result.score:.4g}"]
    if rule.threshold is not None:
        parts.append(f"threshold {rule.threshold:.4g}")
    if decision.p is not None:
        parts.append(f"p {decision.p:.2g}")
    return "   ".join(part for part in parts if part)
