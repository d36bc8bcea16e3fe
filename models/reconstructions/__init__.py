"""UniAD reconstructs features, VisDecoder reconstructs the image from features."""

from models.reconstructions.uniad import UniAD
from models.reconstructions.vis_decoder import VisDecoder

__all__ = ["UniAD", "VisDecoder"]
