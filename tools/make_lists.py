"""Write the lists of images that a configuration's meta_file names.

From a folder in MVTec layout (CLASS/train/good/*, CLASS/test/KIND/*, CLASS/ground_truth/KIND/*_mask.*):
    python tools/make_lists.py --root DIR --out DIR
From a table of counts, as the lists in data/MVTec-AD are made:
    python tools/make_lists.py --counts data/MVTec-AD/counts.json --out data/MVTec-AD --per-class-dir json_vis_decoder
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.lists import Record, lists_from_counts, lists_from_tree, write_list
from utils.cli import run
from utils.errors import UserError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", type=Path, metavar="DIR", help="folder with one folder a class, in MVTec layout")
    source.add_argument("--counts", type=Path, metavar="FILE", help="JSON table {class: {train: {good: n}, test: {kind: n}}}")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="of --root, only these classes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where train.json and test.json are written")
    parser.add_argument("--per-class-dir", metavar="NAME", help="also write OUT/NAME/test_<class>.json for each class")
    return parser.parse_args()


def read_counts(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the count table {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"the count table {path} is not valid JSON ({error})") from None


def print_table(train: list[Record], test: list[Record]) -> None:
    classes = sorted({record["clsname"] for record in train + test})
    width = max(len("total"), *map(len, classes))
    print(f"{'class':{width}}  {'train':>6}  {'test good':>9}  {'test defective':>14}  {'masks':>6}")
    for clsname in [*classes, "total"]:
        chosen = [record for record in test if clsname in ("total", record["clsname"])]
        num_train = sum(clsname in ("total", record["clsname"]) for record in train)
        num_defective = sum(record["label"] for record in chosen)
        num_masks = sum("maskname" in record for record in chosen)
        print(f"{clsname:{width}}  {num_train:6}  {len(chosen) - num_defective:9}  {num_defective:14}  {num_masks:6}")


def main() -> None:
    args = parse_arguments()
    train, test = lists_from_tree(args.root, args.classes) if args.root else lists_from_counts(read_counts(args.counts))
    write_list(train, args.out / "train.json")
    write_list(test, args.out / "test.json")
    if args.per_class_dir:
        for clsname in dict.fromkeys(record["clsname"] for record in test):
            chosen = [record for record in test if record["clsname"] == clsname]
            nameless = [{key: value for key, value in record.items() if key != "clsname"} for record in chosen]
            write_list(nameless, args.out / args.per_class_dir / f"test_{clsname}.json")
    print_table(train, test)


if __name__ == "__main__":
    run(main)
