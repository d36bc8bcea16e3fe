"""Draw the learned queries of UniAD's decoder layers, with the vis decoder of a class.

python tools/vis_query.py --config experiments/vis_query/config.yaml --class_name screw
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.runs.main import class_parser, run_for_class
from utils.runs.vis_query import draw_queries, query_classes

SECTIONS = ("data", "vis_query", "saver", "net")


def main() -> None:
    args = class_parser(__doc__).parse_intermixed_args()
    draw = partial(draw_queries, class_name=args.class_name)
    run_for_class(args, query_classes, SECTIONS, f"vis_query_{args.class_name}", draw)


if __name__ == "__main__":
    run(main)
