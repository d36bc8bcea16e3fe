"""Check a data set, image by image, and write the lists that a configuration's meta_file names.

python tools/prepare_data.py visa --root data/VisA/VisA_20220922 --out data/VisA
python tools/prepare_data.py folder --root data/custom --out data/custom
python tools/prepare_data.py folder --root data/custom --out data/custom --good pass --bad fail --seed 1
python tools/prepare_data.py mvtec --counts data/MVTec-AD/counts.json --out data/MVTec-AD --per_class_dir json_vis_decoder

Writes train.json, test.json and, where a data set holds good images out, validation.json; nothing while an image or a mask
cannot be used. Names in the lists are relative to --root, the configuration's image_dir. `KIND --help` tells more of a kind.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.lists import lists_from_counts
from datasets.prepare import KINDS, read_layout
from datasets.prepare.checks import Checked, check_images
from datasets.prepare.scan import Found
from datasets.prepare.summary import Notes, describe_duplicates, find_notes, table
from datasets.prepare.write_lists import leave_out, only_classes, problems, split_good, write
from utils.errors import UserError
from utils.process.cli import run

MOST_LINES = 100  # of bad files; more have one cause


def parse_arguments() -> argparse.Namespace:
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **form)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", help=", ".join(sorted(KINDS)))
    for name, kind in sorted(KINDS.items()):
        of_kind = kinds.add_parser(name, description=f"{kind.layout}\n\n{kind.source}", **form)
        source = of_kind.add_mutually_exclusive_group(required=True)
        source.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder")
        of_kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the lists are written")
        of_kind.add_argument("--classes", nargs="+", metavar="CLASS", help="only these classes")
        of_kind.add_argument("--per_class_dir", metavar="NAME", help="also write OUT/NAME/test_CLASS.json for each class")
        of_kind.add_argument("--skip_bad", action="store_true", help="leave out what cannot be read instead of stopping")
        of_kind.add_argument(
            "--workers", type=positive, default=os.cpu_count(), metavar="N", help="images read at once (one a core)"
        )
        if name == "mvtec":
            source.add_argument(
                "--counts", type=Path, metavar="FILE", help="a table {class: {split: {kind: n}}} instead of images"
            )
        if name == "folder":
            of_kind.add_argument("--good", metavar="NAME", help="the folder of good images (good, ok or normal)")
            of_kind.add_argument("--bad", metavar="NAME", help="the folder of defective images (every other folder beside it)")
            of_kind.add_argument(
                "--test_share", type=share, default=0.2, metavar="X", help="of good images that are not split yet (0.2)"
            )
            of_kind.add_argument("--seed", type=int, default=0, help="of their split (0)")
    return parser.parse_args()


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def share(text: str) -> float:
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 0 and below 1")
    return float(text)


def read_counts(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the count table {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"the count table {path} is not valid JSON ({error})") from None


def refuse_bad(lines: list[str], skip: bool) -> None:
    """Print a line for each file that cannot be used; UserError unless they are to be left out."""
    for line in lines[:MOST_LINES]:
        print(f"{'left out' if skip else 'bad'}: {line}", file=sys.stderr)
    if len(lines) > MOST_LINES:
        print(f"and {len(lines) - MOST_LINES} more", file=sys.stderr)
    if lines and not skip:
        what = f"{len(lines)} images or masks" if len(lines) > 1 else "an image or mask"
        raise UserError(f"{what} cannot be used (listed above): mend, remove, or leave out with --skip_bad; nothing is written")


def from_images(args: argparse.Namespace) -> tuple[Found, dict[str, Checked], Notes]:
    """The lists of a folder of images, what reading each of them showed, and notes on how they were split."""
    options = {"good": args.good, "bad": args.bad} if args.kind == "folder" else {}
    found = read_layout(args.kind, args.root, **options)
    if args.classes:
        found = only_classes(found, args.classes)
    checked = check_images(found, args.workers)
    refuse_bad(problems(found, checked), args.skip_bad)
    found = leave_out(found, checked)
    found, notes = split_good(found, checked, args.test_share, args.seed) if args.kind == "folder" else (found, {})
    return found, checked, notes


def main() -> None:
    args = parse_arguments()
    if getattr(args, "counts", None):
        train, test = lists_from_counts(read_counts(args.counts))
        found, checked, notes = Found(Path(), train=train, test=test), {}, {}
    else:
        found, checked, notes = from_images(args)
    paths = write(found, args.out, args.per_class_dir)
    print("\n".join([table(found, find_notes(found, checked), notes), *describe_duplicates(found, checked)]))
    print(f"{', '.join(path.name for path in paths[:3])}{' …' * (len(paths) > 3)}: written to {args.out}")


if __name__ == "__main__":
    run(main)
