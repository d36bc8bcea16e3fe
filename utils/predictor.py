"""A promised name: `utils.predictor.Predictor`. The code is in utils/predict/predictor.py."""

from utils.predict.predictor import Predictor

__all__ = ["Predictor"]
