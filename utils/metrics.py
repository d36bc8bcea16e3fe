"""A promised name: `utils.metrics.evaluate_maps`. The code is in utils/evaluation/metrics.py."""

from utils.evaluation.metrics import evaluate_maps

__all__ = ["evaluate_maps"]
