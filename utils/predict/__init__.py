"""Prediction of many images: what is read, what is written. Nothing here imports torch."""
