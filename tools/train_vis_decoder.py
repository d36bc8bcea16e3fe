"""Train the vis decoder of one class: what draws features as images, for vis_recon.py and vis_query.py.

python tools/train_vis_decoder.py --config experiments/train_vis_decoder/config.yaml --class_name screw
python tools/train_vis_decoder.py --config experiments/train_vis_decoder/config.yaml --class_name screw -v
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import CLASS_OUTPUTS, load_config
from utils.process.cli import add_class_arguments, run
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.vis_decoder import draw_check_images, train_decoder, training_classes

SECTIONS = ("dataset", "criterion", "trainer", "saver", "net")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_class_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-v", "--visualize", action="store_true", help="draw the check images with saver.load_path, do not train")
    overwrite = argparse.BooleanOptionalAction  # train.sbatch appends --no-overwrite for a restarted job
    what.add_argument("--overwrite", action=overwrite, help="start a new run over the checkpoints of an earlier one")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    if args.list_classes:
        print(*training_classes(args.config, args.overrides), sep="\n")
        return
    config = load_config(args.config, args.overrides, SECTIONS, args.class_name, CLASS_OUTPUTS)
    process = start_process(config.saver.log_dir, config.port)
    start_log(config.saver.log_dir, process, "vis" if args.visualize else "train")
    if args.visualize:
        draw_check_images(config, process)
    else:
        train_decoder(config, process, overwrite=args.overwrite)
    stop_process()


if __name__ == "__main__":
    run(main)
