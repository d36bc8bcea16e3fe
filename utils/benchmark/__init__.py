"""Measurements of speed and memory, a module each; tools/benchmark.py runs them."""
