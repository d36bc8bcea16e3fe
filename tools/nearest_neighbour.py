"""Evaluate a baseline without training: the distance of each token to the nearest of some random normal ones.

python tools/nearest_neighbour.py --config experiments/custom/config.yaml
python tools/nearest_neighbour.py --config experiments/custom/config.yaml --tokens 5000 random_seed=1
python tools/summarize.py experiments/custom/result experiments/custom/result_nearest_neighbour

Backbone, neck, data, feature cache and metrics are the configuration's; random_seed draws the tokens, of all classes together.
Features are averaged over 3x3 and standardised by channel. The result is what evaluation writes, in the folder
result_nearest_neighbour beside the configuration unless evaluator.save_dir=... is given here.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import load_config
from utils.process.cli import run
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.nearest_neighbour import evaluate_nearest_neighbour
from utils.runs.per_class import run_separately

SECTIONS = ("dataset", "criterion", "saver", "evaluator", "net")
NAME = "nearest_neighbour"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    parser.add_argument("--tokens", type=count, default=20000, metavar="N", help="normal tokens to compare with (20000)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's, by dotted key")
    return parser.parse_intermixed_args()


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> None:
    args = parse_arguments()
    overrides = [f"evaluator.save_dir=result_{NAME}", *args.overrides]  # not over a trained model's result
    config = load_config(args.config, overrides, needs=SECTIONS)
    process = start_process(config.saver.log_dir, config.port)
    action = partial(evaluate_nearest_neighbour, tokens=args.tokens)
    if config.dataset.separate:
        run_separately(args.config, overrides, process, NAME, action)
    else:
        start_log(config.saver.log_dir, process, NAME)
        action(config, process)
    stop_process()


if __name__ == "__main__":
    run(main)
