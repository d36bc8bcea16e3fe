"""Measure this machine: how fast a configuration's network and the metrics are, beside plain references in the same run.

python tools/benchmark.py --config experiments/MVTec-AD/config.yaml
python tools/benchmark.py --config experiments/MVTec-AD/config.yaml --json benchmark.json

It needs neither data nor weights: images, maps and weights are random. It takes minutes; let nothing else run meanwhile.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.benchmark.metrics import measure_metrics
from utils.benchmark.report import format_report
from utils.benchmark.speed import benchmark_config, measure_speed
from utils.config import load_config
from utils.files import write_text
from utils.process.arguments import add_config_arguments, tool_parser

COUNTS = Path(__file__).resolve().parent.parent / "data/MVTec-AD/counts.json"  # 1,725 test images of 15 classes
SECTIONS = ("dataset", "criterion", "trainer", "net")


def main() -> None:
    parser = tool_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--json", metavar="F", help="write the measurements to this file as well")
    args = parser.parse_intermixed_args()
    config = benchmark_config(load_config(args.config, args.overrides, needs=SECTIONS))
    counts = json.loads(COUNTS.read_text(encoding="utf-8"))
    report = {"config": args.config, **measure_speed(config), "metrics": measure_metrics(counts)}
    print(format_report(report))
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
