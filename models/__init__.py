"""Backbones, necks, reconstructions, discriminators, and the network they form."""

from models.network import build_network, find_memory

__all__ = ["build_network", "find_memory"]
