"""An earlier name of datasets/images.py, which others' scripts import."""

from datasets.images import to_rgb

__all__ = ["to_rgb"]
