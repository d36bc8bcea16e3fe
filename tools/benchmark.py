"""Measure this machine: how fast the model and the metrics are, beside plain references in the same run.

python tools/benchmark.py speed       a training step and inference, float32 and bfloat16, and what the time is spent on
python tools/benchmark.py metrics     all seven metrics of a test set of MVTec-AD's size, beside scikit-learn: minutes
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.benchmark.metrics import benchmark_metrics
from utils.benchmark.speed import format_speed, measure_speed
from utils.cli import run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "metrics"))
    return parser.parse_args()


def main() -> None:
    if parse_arguments().what == "speed":
        print(format_speed(measure_speed()))
    else:
        print(benchmark_metrics())


if __name__ == "__main__":
    run(main)
