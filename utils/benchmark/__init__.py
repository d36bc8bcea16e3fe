"""Speed and memory compared with plain references. tools/benchmark.py runs the measurements."""
