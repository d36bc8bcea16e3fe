"""Train the vis decoder of one class, which draws features as images for vis_recon.py and vis_query.py.

python tools/train_vis_decoder.py --config experiments/train_vis_decoder/config.yaml --class_name screw
python tools/train_vis_decoder.py --config experiments/train_vis_decoder/config.yaml --class_name screw -v
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.config import CLASS_OUTPUTS
from utils.runs.main import class_parser, run_for_class
from utils.runs.vis_decoder import draw_check_images, train_decoder, training_classes

SECTIONS = ("dataset", "criterion", "trainer", "saver", "net")


def main() -> None:
    parser = class_parser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-v", "--visualize", action="store_true", help="draw the check images with saver.load_path, do not train")
    # train.sbatch appends --no-overwrite for a restarted job
    overwrite = argparse.BooleanOptionalAction
    what.add_argument("--overwrite", action=overwrite, help="start a new run over the checkpoints of an earlier one")
    args = parser.parse_intermixed_args()
    action = draw_check_images if args.visualize else partial(train_decoder, overwrite=args.overwrite)
    log_name = "vis" if args.visualize else "train"
    run_for_class(args, training_classes, SECTIONS, log_name, action, CLASS_OUTPUTS)


if __name__ == "__main__":
    run(main)
