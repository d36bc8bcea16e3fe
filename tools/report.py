"""Write a report, one HTML file that needs nothing else: of an evaluation from its result folder (evaluator.save_dir), or of a
prediction from its folder.

python tools/report.py --result experiments/demo/result
python tools/report.py --predicted decided
python tools/report.py --result experiments/demo/result --out report.html
python tools/report.py --compare experiments/custom/result experiments/custom-memory/result --out comparison.html

--predicted: scores, share of defective images and drift over time, and the last defective images; also while predict.py runs.

--compare: of the same test images, the differences in image AUROC with paired intervals, all metrics side by side, and the
images on which the results disagree most.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.predict.report import write_prediction_report
from utils.process.arguments import tool_parser
from utils.report.compare import write_comparison
from utils.report.page import write_report


def main() -> None:
    parser = tool_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--result", type=Path, metavar="DIR", help="folder that evaluation wrote")
    what.add_argument("--predicted", type=Path, metavar="DIR", help="folder that predict.py wrote")
    what.add_argument(
        "--compare", type=Path, nargs="+", metavar="DIR", help="folders; the first is what others are compared with"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (DIR/report.html, or comparison.html here)")
    args = parser.parse_args()
    if args.predicted:
        print(write_prediction_report(args.predicted, args.out))
    elif args.compare:
        print(write_comparison(args.compare, args.out or Path("comparison.html")))
    else:
        print(write_report(args.result, args.out))


if __name__ == "__main__":
    run(main)
