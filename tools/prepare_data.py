"""Check a data set, image by image, and write the lists that a configuration's meta_file names.

python tools/prepare_data.py visa --root data/VisA/VisA_20220922 --out data/VisA
python tools/prepare_data.py folder --root data/custom --out data/custom
python tools/prepare_data.py folder --root data/custom --out data/custom --good pass --bad fail --seed 1
python tools/prepare_data.py mvtec --counts data/MVTec-AD/counts.json --out data/MVTec-AD --per_class_dir json_vis_decoder

Writes train.json, test.json and, where a data set holds out good images, validation.json. Writes nothing if an image or a mask
cannot be used. Names in the lists are relative to --root, the configuration's image_dir. `KIND --help` describes a kind.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from datasets.lists import FURTHER_PAGES, lists_from_counts
from datasets.prepare import KINDS, read_layout
from datasets.prepare.checks import Checked, check_images, problems
from datasets.prepare.scan import Scan, shorten
from datasets.prepare.summary import describe_duplicates, describe_folders, table
from datasets.prepare.write_lists import earlier_groups, leave_out, only_classes, split_good, write
from utils.errors import UserError
from utils.process.arguments import tool_parser
from utils.reading import parse_json, read_bytes

UNSPLIT = ("folder", "elpv")  # the kinds whose good images may not be split
MAX_LINES = 100  # of files that cannot be used; more than that have one common cause


def parse_arguments() -> argparse.Namespace:
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = tool_parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", help=", ".join(sorted(KINDS)))
    for name, kind in sorted(KINDS.items()):
        subparser = kinds.add_parser(name, description=f"{kind.layout}\n\n{kind.source}", **form)
        add = subparser.add_argument
        source = subparser.add_mutually_exclusive_group(required=True)
        source.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder")
        add("--out", type=Path, required=True, metavar="DIR", help="where the lists are written")
        add("--classes", nargs="+", metavar="CLASS", help="only these classes")
        add("--per_class_dir", metavar="NAME", help="also write OUT/NAME/test_CLASS.json for each class")
        add("--skip_bad", action="store_true", help="leave out what cannot be read instead of stopping")
        add("--dry_run", action="store_true", help="print what would be written, and write nothing")
        add("--workers", type=int, default=os.cpu_count(), metavar="N", help="images read at once (one per core)")
        if name == "mvtec":
            counts_help = "a table {class: {split: {kind: n}}} instead of images"
            source.add_argument("--counts", type=Path, metavar="FILE", help=counts_help)
        if name == "folder":
            add("--good", metavar="NAME", help="the folder of good images (good, ok, normal, …); . for all images")
            add("--bad", metavar="NAME", help="the folder of defective images (every other folder beside it)")
        if name in UNSPLIT:
            add("--test_share", type=float, default=0.2, metavar="X", help="share of the unsplit good images for test (0.2)")
            add("--seed", type=int, default=0, help="of that split (0)")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.kind in UNSPLIT and not 0 <= args.test_share < 1:
        parser.error("--test_share must be at least 0 and below 1")
    return args


def read_counts(path: Path) -> dict:
    try:
        return parse_json(read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read the count table {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"the count table {path} is not valid JSON ({error})") from None


def report_bad(lines: list[str], skip: bool) -> None:
    """Print a line for each file that cannot be used; UserError unless they are left out."""
    for line in shorten([f"{'left out' if skip else 'bad'}: {line}" for line in lines], MAX_LINES):
        print(line, file=sys.stderr)
    if lines and not skip:
        what = f"{len(lines)} images or masks" if len(lines) > 1 else "an image or mask"
        raise UserError(f"{what} cannot be used (listed above): repair, remove, or use --skip_bad; nothing is written")


def scan_images(args: argparse.Namespace) -> tuple[Scan, dict[str, Checked], list[str]]:
    """Read the layout, check every image and split.

    Returns the images for the lists, the result of each check, and what each folder was taken for.
    """
    options = {"good": args.good, "bad": args.bad} if args.kind == "folder" else {}
    scan = read_layout(args.kind, args.root, **options)
    if args.classes:
        scan = only_classes(scan, args.classes)
    folders = describe_folders(scan, every=args.kind == "folder")
    checked = check_images(scan, args.workers)
    if pages := [name for name, result in checked.items() if result.frames > 1]:
        scan.tree.left_out[FURTHER_PAGES] = pages
    report_bad(problems(scan, checked), args.skip_bad)
    scan = leave_out(scan, checked)
    if args.kind in UNSPLIT:
        scan = split_good(scan, checked, args.test_share, args.seed, earlier_groups(args.out))
    return scan, checked, folders


def main() -> None:
    args = parse_arguments()
    if getattr(args, "counts", None):
        scan, checked, folders = Scan(Path(), *lists_from_counts(read_counts(args.counts))), {}, []
    else:
        scan, checked, folders = scan_images(args)
    paths = write(scan, args.out, args.per_class_dir, args.dry_run)
    print("\n".join([table(scan, checked), *describe_duplicates(scan, checked), *folders, *scan.tree.describe_left_out()]))
    print(f"{', '.join(path.name for path in paths[:3])}{' …' * (len(paths) > 3)}: {'not ' * args.dry_run}written to {args.out}")
    if not scan.test:
        old = "; the test.json there is of an earlier run" if (args.out / "test.json").exists() else ""
        print(f"no image is left for test.json: training works without test images, an evaluation needs some{old}")


if __name__ == "__main__":
    run(main)
