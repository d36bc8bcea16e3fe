"""An earlier name of datasets/images.py, which others' scripts import."""

from datasets.images import ImageReader

__all__ = ["ImageReader"]
