"""Draw the features that UniAD reconstructed for a class's images, saved by its evaluation, with the vis decoder of the class.

python tools/vis_recon.py --config experiments/vis_recon/config.yaml --class_name screw
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.runs.main import class_parser, run_for_class
from utils.runs.vis_recon import draw_reconstructions, recon_classes

SECTIONS = ("data", "saver", "net")


def main() -> None:
    args = class_parser(__doc__).parse_intermixed_args()
    draw = partial(draw_reconstructions, class_name=args.class_name)
    run_for_class(args, recon_classes, SECTIONS, f"vis_recon_{args.class_name}", draw)


if __name__ == "__main__":
    run(main)
