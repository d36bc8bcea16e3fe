"""Choose thresholds for a false-alarm rate, from normal images that training has not seen.

python tools/train_val.py --config experiments/custom/config.yaml dataset.holdout=0.1
python tools/calibrate.py --config experiments/custom/config.yaml
python tools/calibrate.py --config experiments/custom/config.yaml --false_alarm_rate 0.01 --meta_file more_good_ones.json

It writes calibration.json beside the checkpoint, which tools/predict.py and the report use, and prints a table: of each class
the threshold, the images it is from, the interval that holds the true false-alarm rate with 95 % confidence, and, where the
checkpoint was evaluated, the rates on the test set.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import load_config
from utils.process.cli import run
from utils.runs.calibrate import calibrate_checkpoint

SECTIONS = ("dataset", "saver", "evaluator", "net")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    parser.add_argument("--checkpoint", metavar="F", help="checkpoint (saver.load_path)")
    parser.add_argument("--false_alarm_rate", type=rate, default=0.05, metavar="A", help="share of good images above it (0.05)")
    parser.add_argument("--meta_file", metavar="LIST", help="list of other normal images, in place of those of dataset.holdout")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's, by dotted key")
    return parser.parse_intermixed_args()


def rate(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return number


def main() -> None:
    args = parse_arguments()
    config = load_config(args.config, args.overrides, needs=SECTIONS)
    print(calibrate_checkpoint(config, args.checkpoint or config.saver.load_path, args.false_alarm_rate, args.meta_file))


if __name__ == "__main__":
    run(main)
