"""Draw the learned queries of UniAD's decoder layers, through the vis decoder of a class.

python tools/vis_query.py --config experiments/vis_query/config.yaml --class_name screw
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import load_config
from utils.process.cli import add_class_arguments, run
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.vis_query import draw_queries, query_classes

SECTIONS = ("data", "vis_query", "saver", "net")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_class_arguments(parser)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    if args.list_classes:
        print(*query_classes(args.config, args.overrides), sep="\n")
        return
    config = load_config(args.config, args.overrides, SECTIONS, args.class_name)
    process = start_process(config.saver.log_dir, config.port)
    start_log(config.saver.log_dir, process, f"vis_query_{args.class_name}")
    draw_queries(config, process, args.class_name)
    stop_process()


if __name__ == "__main__":
    run(main)
