"""Choose thresholds for a false-alarm rate, from normal images that training has not seen.

python tools/train_val.py --config experiments/custom/config.yaml dataset.holdout=0.1
python tools/calibrate.py --config experiments/custom/config.yaml
python tools/calibrate.py --config experiments/custom/config.yaml --false_alarm_rate 0.01 --meta_file more_good_ones.json

It writes calibration.json beside the checkpoint; prediction, evaluation, report and export use it. It prints for each class the
thresholds of images and of pixels, the number of images behind them, and the 95 % confidence interval of the false-alarm rate.
That is the share of good images that score above the threshold, and of those that show a region. If the checkpoint was
evaluated, it also prints the rates on the test set.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.config import load_config
from utils.process.arguments import add_config_arguments, open_share, percent, tool_parser
from utils.runs.calibrate import calibrate_checkpoint

SECTIONS = ("dataset", "saver", "evaluator", "net")


def main() -> None:
    parser = tool_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--checkpoint", metavar="F", help="checkpoint (saver.load_path)")
    parser.add_argument("--false_alarm_rate", type=open_share, default=0.05, metavar="A", help="share of good images (0.05)")
    parser.add_argument("--score", metavar="S", help="image score of evaluator.metrics (evaluator.key_metric's)")
    parser.add_argument("--min_area", type=percent, default=0.0002, metavar="PERCENT", help="of the image, of a region (0.02)")
    parser.add_argument("--meta_file", metavar="LIST", help="list of other normal images, instead of those of dataset.holdout")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides, needs=SECTIONS)
    checkpoint = args.checkpoint or config.saver.load_path
    print(calibrate_checkpoint(config, checkpoint, args.false_alarm_rate, args.meta_file, args.score, args.min_area))


if __name__ == "__main__":
    run(main)
