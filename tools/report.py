"""Write the report of an evaluation, one HTML file that needs nothing else, from its result folder (evaluator.save_dir).

python tools/report.py --result experiments/demo/result
python tools/report.py --result experiments/demo/result --out report.html
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.arguments import tool_parser
from utils.process.cli import run
from utils.report.page import write_report


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("--result", type=Path, required=True, metavar="DIR", help="folder that evaluation wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (DIR/report.html)")
    args = parser.parse_args()
    print(write_report(args.result, args.out))


if __name__ == "__main__":
    run(main)
