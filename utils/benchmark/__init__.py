"""Measurements of speed and memory beside plain references; tools/benchmark.py runs them.

plain       the reference network
speed       training, feature extraction and inference
metrics     the evaluation metrics
process     the processes that both measure in
report      the table
"""
