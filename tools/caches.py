"""Show the caches of features and images in a folder and below it, and remove old ones.

python tools/caches.py experiments                # sizes, and when each was last used
python tools/caches.py experiments --remove 30    # remove those that were not used for 30 days; 0: all

Remove no cache that a running training reads. What is removed is computed again when a run needs it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.process.arguments import tool_parser
from utils.runs.caches import show_caches


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("folder", metavar="DIR", help="where to look")
    parser.add_argument("--remove", type=int, metavar="DAYS", help="remove what was not used for so many days")
    args = parser.parse_args()
    if args.remove is not None and args.remove < 0:
        parser.error("--remove must be at least 0")
    print(show_caches(args.folder, args.remove))


if __name__ == "__main__":
    run(main)
