"""Large photographs with small defects, for measuring: each is a square of good photographs, among them one of the test set.

python -m tests.helpers.mosaic SOURCE OUT [--side 6] [--train 30] [--held 25] [--good 20] [--defective 40]

SOURCE has the layout of MVTec-AD. OUT gets the same layout and the lists train.json, held.json, for calibrate.py, and test.json.
Each of them shows its own third of the good training photographs. Defects above 0.1 % of the large photograph are left out. The
same arguments give the same files.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from datasets.lists import lists_from_tree, write_list
from tests.helpers.tiny import save_image

LARGEST = 0.001  # share of the large photograph that is defective, at most


def square(pictures: list[np.ndarray], side: int) -> np.ndarray:
    """side x side pictures, all of the first one's size, as one."""
    size = pictures[0].shape[1::-1]
    rows = [pictures[start : start + side] for start in range(0, side * side, side)]
    return np.vstack([np.hstack([cv2.resize(one, size) for one in row]) for row in rows])


def make_class(source: Path, out: Path, side: int, counts: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    good = sorted((source / "train/good").iterdir())
    around, thirds = good[::3], {"train": good[1::3], "held": good[2::3]}

    def draw(paths: list[Path], count: int) -> list[np.ndarray]:
        return [cv2.imread(str(paths[number])) for number in rng.integers(0, len(paths), count)]

    def save(name: str, picture: np.ndarray) -> None:
        save_image(out / source.name / name, picture)

    for kind, paths in thirds.items():
        for number in range(counts[kind]):
            save(f"train/good/{kind}_{number:03d}.jpg", square(draw(paths, side**2), side))
    tests = {"good": sorted((source / "test/good").iterdir()), "small": []}
    for path in sorted(source.glob("test/*/*")):
        mask = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if mask.exists() and (cv2.imread(str(mask), 0) > 0).mean() / side**2 < LARGEST:
            tests["small"].append(path)
    for kind, paths in tests.items():
        for number, path in enumerate(paths[i] for i in rng.permutation(len(paths))[: counts[kind]]):
            place, pictures = int(rng.integers(side**2)), draw(around, side**2)
            pictures[place] = cv2.imread(str(path))
            save(f"test/{kind}/{number:03d}.jpg", square(pictures, side))
            if kind == "small":
                mask = cv2.imread(str(source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"))
                masks = [np.zeros_like(mask)] * side**2
                masks[place] = mask
                save(f"ground_truth/small/{number:03d}_mask.png", square(masks, side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    for name, count in (("side", 6), ("train", 30), ("held", 25), ("good", 20), ("defective", 40)):
        parser.add_argument(f"--{name}", type=int, default=count)
    args = parser.parse_args()
    counts = {"train": args.train, "held": args.held, "good": args.good, "small": args.defective}
    for source in sorted(path for path in args.source.iterdir() if (path / "train").is_dir()):
        make_class(source, args.out, args.side, counts)
    trained, tested = lists_from_tree(args.out)
    held = [record for record in trained if "/held_" in record["filename"]]
    lists = {"train": [record for record in trained if record not in held], "held": held, "test": tested}
    for name, records in lists.items():
        write_list(records, args.out / f"{name}.json")


if __name__ == "__main__":
    main()
