"""What brings the backbone's feature maps onto one grid."""

from models.necks.mfcn import MFCN

__all__ = ["MFCN"]
