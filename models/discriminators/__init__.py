"""What learns to tell normal features from those of pseudo-anomalies, beside the reconstruction."""

from models.discriminators.discriminator import Discriminator

__all__ = ["Discriminator"]
