"""Train a reconstruction model, or evaluate a checkpoint of one.

python tools/train_val.py --config experiments/demo/config.yaml
python tools/train_val.py --config experiments/demo/config.yaml -e
python tools/train_val.py --config experiments/demo/config.yaml trainer.max_epoch=5 dataset.batch_size=16
python tools/train_val.py --config experiments/demo/config.yaml dataset.separate=True        # one model a class
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.config import load_config, read_config
from utils.process.arguments import add_config_arguments, tool_parser
from utils.runs.evaluate import evaluate_checkpoint
from utils.runs.main import run_configured
from utils.runs.train import train

SECTIONS = ("dataset", "criterion", "trainer", "saver", "evaluator", "net")


def main() -> None:
    parser = tool_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("-e", "--evaluate", action="store_true", help="evaluate saver.load_path instead of training")
    overwrite = argparse.BooleanOptionalAction  # train.sbatch appends --no-overwrite for a restarted job
    parser.add_argument("--overwrite", action=overwrite, help="start a new run over the checkpoints of an earlier one")
    parser.add_argument("--print_config", action="store_true", help="print the complete configuration of a run, and end")
    args = parser.parse_intermixed_args()
    if args.print_config:
        load_config(args.config, args.overrides, SECTIONS)  # finds every problem
        print(yaml.safe_dump(read_config(args.config, args.overrides, SECTIONS), sort_keys=False), end="")
    elif args.evaluate:
        run_configured(args.config, args.overrides, SECTIONS, "eval", evaluate_checkpoint)
    else:
        run_configured(args.config, args.overrides, SECTIONS, "train", partial(train, overwrite=args.overwrite))


if __name__ == "__main__":
    run(main)
