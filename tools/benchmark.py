"""Measure this machine: how fast a configuration's network and the metrics are, beside plain references in the same run.

python tools/benchmark.py --config experiments/MVTec-AD/config.yaml
python tools/benchmark.py --config experiments/MVTec-AD/config.yaml --json benchmark.json

It needs neither data nor weights: images, maps and weights are random. It takes minutes; let nothing else run meanwhile.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.benchmark.metrics import measure_metrics, mvtec_counts
from utils.benchmark.report import format_report
from utils.benchmark.speed import benchmark_config, measure_speed
from utils.config import load_config
from utils.files import write_text
from utils.process.cli import run

SECTIONS = ("dataset", "criterion", "trainer", "net")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    parser.add_argument("--json", metavar="F", help="write the measurements to this file as well")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's, by dotted key")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    config = benchmark_config(load_config(args.config, args.overrides, needs=SECTIONS))
    report = {"config": args.config, **measure_speed(config), "metrics": measure_metrics(mvtec_counts())}
    print(format_report(report))
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
