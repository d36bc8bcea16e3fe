"""UniAD, Memory and Dinomaly reconstruct features, VisDecoder reconstructs the image from features."""

from models.reconstructions.dinomaly import Dinomaly
from models.reconstructions.memory import Memory
from models.reconstructions.uniad import UniAD
from models.reconstructions.vis_decoder import VisDecoder

__all__ = ["Dinomaly", "Memory", "UniAD", "VisDecoder"]
