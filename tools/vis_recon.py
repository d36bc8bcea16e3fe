"""Draw what UniAD made of a class's images: features saved by its evaluation, through the class's vis decoder.

python tools/vis_recon.py --config experiments/vis_recon/config.yaml --class_name screw
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import load_config
from utils.process.cli import add_class_arguments, run
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.vis_recon import draw_reconstructions, recon_classes

SECTIONS = ("data", "saver", "net")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_class_arguments(parser)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    if args.list_classes:
        print(*recon_classes(args.config, args.overrides), sep="\n")
        return
    config = load_config(args.config, args.overrides, SECTIONS, args.class_name)
    process = start_process(config.saver.log_dir, config.port)
    start_log(config.saver.log_dir, process, f"vis_recon_{args.class_name}")
    draw_reconstructions(config, process, args.class_name)
    stop_process()


if __name__ == "__main__":
    run(main)
