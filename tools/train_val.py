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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import load_config
from utils.process.cli import run
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.evaluate import evaluate_checkpoint
from utils.runs.per_class import run_separately
from utils.runs.train import train

SECTIONS = ("dataset", "criterion", "trainer", "saver", "evaluator", "net")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    parser.add_argument("-e", "--evaluate", action="store_true", help="evaluate saver.load_path instead of training")
    overwrite = argparse.BooleanOptionalAction  # train.sbatch appends --no-overwrite for a restarted job
    parser.add_argument("--overwrite", action=overwrite, help="start a new run over the checkpoints of an earlier one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's, by dotted key")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    config = load_config(args.config, args.overrides, needs=SECTIONS)
    process = start_process(config.saver.log_dir, config.port)
    name = "eval" if args.evaluate else "train"
    action = evaluate_checkpoint if args.evaluate else partial(train, overwrite=args.overwrite)
    if config.dataset.separate:
        run_separately(args.config, args.overrides, process, name, action)
    else:
        start_log(config.saver.log_dir, process, name)
        action(config, process)
    stop_process()


if __name__ == "__main__":
    run(main)
