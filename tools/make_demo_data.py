"""Make the embedded demo set: seven classes in MVTec layout, drawn and cut from scikit-image's photographs, no download.

python tools/make_demo_data.py
python tools/make_demo_data.py --out DIR --seed 1
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.demo.build import build_demo
from utils.process.cli import run


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=root / "data" / "demo", metavar="DIR", help="folder to make (data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another set (0)")
    args = parser.parse_args()
    made = build_demo(args.out, args.seed)
    print(f"{args.out}: made" if made else f"{args.out}: already there, nothing to do")


if __name__ == "__main__":
    run(main)
