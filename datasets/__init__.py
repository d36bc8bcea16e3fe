"""Data sets and image readers. This file imports no torch, so that prediction without PyTorch can use the readers."""
