"""Make the embedded demo set without a download: seven classes in MVTec layout, from drawings and scikit-image's photographs.

python tools/make_demo_data.py
python tools/make_demo_data.py --out DIR --seed 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from datasets.demo.build import build_demo
from utils.process.arguments import tool_parser

OUT = Path(__file__).resolve().parent.parent / "data" / "demo"


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="folder to make (data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another set (0)")
    args = parser.parse_args()
    made = build_demo(args.out, args.seed)
    print(f"{args.out}: made" if made else f"{args.out}: already there, nothing to do")


if __name__ == "__main__":
    run(main)
