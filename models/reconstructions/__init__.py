"""UniAD and Memory reconstruct features, VisDecoder reconstructs the image from features."""

from models.reconstructions.memory import Memory
from models.reconstructions.uniad import UniAD
from models.reconstructions.vis_decoder import VisDecoder

__all__ = ["Memory", "UniAD", "VisDecoder"]
