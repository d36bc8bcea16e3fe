"""Prediction of many images. Only torch_engine.py and export.py import torch."""
