"""Necks join the feature maps of a backbone on one grid."""

from models.necks.mfcn import MFCN
from models.necks.standardise import Standardise

__all__ = ["MFCN", "Standardise"]
