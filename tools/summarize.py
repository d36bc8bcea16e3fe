"""Join result folders (evaluator.save_dir) into one table.

python tools/summarize.py seed1/result seed2/result seed3/result            # the same classes: mean ± standard deviation
python tools/summarize.py screw/result pcb/result glassfiber/result         # one model a class: one table and its mean
python tools/summarize.py seed*/result --out summary.md                     # and as Markdown, .json or .txt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.process.arguments import tool_parser
from utils.report.summary import format_text, summarize, write_summary


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULT_DIR", help="folder that evaluation wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it too: .json, .md or .txt")
    args = parser.parse_intermixed_args()
    summary = summarize(args.folders)
    print(format_text(summary))
    if args.out:
        write_summary(summary, args.out)


if __name__ == "__main__":
    run(main)
