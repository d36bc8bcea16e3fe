"""Backbones, necks, reconstructions, discriminators, and the network they form."""

from models.network import build_network

__all__ = ["build_network"]
