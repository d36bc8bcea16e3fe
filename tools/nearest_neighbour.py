"""Evaluate a baseline without training: the distance of each token to the nearest of some random normal ones.

python tools/nearest_neighbour.py --config experiments/custom/config.yaml
python tools/nearest_neighbour.py --config experiments/custom/config.yaml --tokens 5000 random_seed=1
python tools/summarize.py experiments/custom/result experiments/custom/result_nearest_neighbour

Backbone, neck, data, feature cache and metrics are those of the configuration. random_seed chooses the tokens, from all classes
together. Features are averaged over 3x3 and standardised by channel. The result folder is the same as evaluation's; it is
result_nearest_neighbour beside the configuration, or the evaluator.save_dir=... given here.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.arguments import add_config_arguments, positive_int, tool_parser
from utils.process.cli import run
from utils.runs.main import run_configured
from utils.runs.nearest_neighbour import evaluate_nearest_neighbour

SECTIONS = ("dataset", "criterion", "saver", "evaluator", "net")
NAME = "nearest_neighbour"


def main() -> None:
    parser = tool_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--tokens", type=positive_int, default=20000, metavar="N", help="normal tokens to compare with (20000)")
    args = parser.parse_intermixed_args()
    overrides = [f"evaluator.save_dir=result_{NAME}", *args.overrides]  # not over a trained model's result
    run_configured(args.config, overrides, SECTIONS, NAME, partial(evaluate_nearest_neighbour, tokens=args.tokens))


if __name__ == "__main__":
    run(main)
