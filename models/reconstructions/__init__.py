"""What reconstructs: UniAD reconstructs features, VisDecoder draws the image that features stand for."""

from models.reconstructions.uniad import UniAD
from models.reconstructions.vis_decoder import VisDecoder

__all__ = ["UniAD", "VisDecoder"]
