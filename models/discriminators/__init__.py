"""Discriminators learn to tell normal features from those of pseudo-anomalies."""

from models.discriminators.discriminator import Discriminator

__all__ = ["Discriminator"]
