"""What a user should know about the lists: a table with notes on each class, and duplicates across the split."""

from collections import Counter

from datasets.lists import Record
from datasets.prepare.checks import Checked
from datasets.prepare.scan import Scan, by_class, shorten

FEW = 8  # training images of a class
MAX_PAIRS = 10


def duplicates(scan: Scan, checked: dict[str, Checked]) -> list[tuple[Record, str]]:
    """Images of test and validation whose file is also in training, each with its name there; none if `checked` is empty."""
    if not checked:
        return []
    trained = {checked[line["filename"]].digest: line["filename"] for line in scan.train}
    pairs = [(line, trained.get(checked[line["filename"]].digest)) for line in scan.test + scan.validation]
    return [(line, name) for line, name in pairs if name is not None]


def describe_duplicates(scan: Scan, checked: dict[str, Checked]) -> list[str]:
    """A line for each of the first MAX_PAIRS duplicates, and one for how many more there are; those of two labels come first."""
    good = {checked[line["filename"]].digest: line["filename"] for line in scan.records() if checked and not line["label"]}
    wrong = [
        f"the same file: {line['filename']} (defective) and {name} (good): remove one"
        for line in scan.records()
        if checked and line["label"] and (name := good.get(checked[line["filename"]].digest))
    ]
    pairs = [(line["filename"], name) for line, name in duplicates(scan, checked) if not line["label"]]
    return shorten(wrong + [f"the same file: {name} (test) and {other} (training)" for name, other in pairs], MAX_PAIRS)


def describe_folders(scan: Scan, every: bool) -> list[str]:
    """A line a folder and what its images were taken for; only what is left out, unless `every`."""
    roles = dict.fromkeys(scan.tree.images, "left out") | {name: f"left out ({why})" for name, why in scan.left_out.items()}
    lists = ((scan.train, "good, for training"), (scan.test, "good, for testing"), (scan.validation, "good, held out"))
    for records, good in (*lists, (scan.unsplit, "good")):
        for line in records:
            roles[line["filename"]] = "defective" if line["label"] else good
            roles |= dict.fromkeys(scan.parts_of_mask(line), "masks")
    counts = Counter((name.rpartition("/")[0] or ".", role) for name, role in roles.items())
    lines = [f"{folder}/ {n} images: {role}" for (folder, role), n in sorted(counts.items()) if every or role.startswith("left")]
    return lines + [f"{folder}/ no image" for folder in scan.tree.empty_folders()]


def table(scan: Scan, checked: dict[str, Checked]) -> str:
    """A row a class and one of sums: the number of images in each list, and notes. `checked` is empty where no image was read."""
    copies = Counter(line["clsname"] for line, _ in duplicates(scan, checked))
    trained, tested, held_out = by_class(scan.train), by_class(scan.test), by_class(scan.validation)
    rows = []
    for clsname in sorted(trained | tested):
        train, test = trained[clsname], tested[clsname]
        defective = [line for line in test if line["label"]]
        results = [checked[line["filename"]] for line in train + test if line["filename"] in checked]
        notes = {
            f"fewer than {FEW} training images": len(train) < FEW,
            "no good test images": len(defective) == len(test),
            "no defective test images": not defective,
        }
        counts = {
            "held out in validation.json": len(held_out[clsname]),
            "defective without mask": sum("maskname" not in line for line in defective),
            "empty masks": sum(result.empty_mask for result in results),
            "nearly full masks (inverted?)": sum(result.full_mask for result in results),
            "also in training": copies[clsname],
            "nearly black (fewer than 8 bits used?)": sum(result.black for result in results),
            "near-duplicates kept on one side": scan.near_duplicates.get(clsname, 0),
        }
        texts = [text for text, applies in notes.items() if applies] + [f"{n} {text}" for text, n in counts.items() if n]
        masks = sum("maskname" in line for line in test)
        rows.append((clsname, len(train), len(test) - len(defective), len(defective), masks, "; ".join(texts)))
    rows.append(("total", *(sum(row[column] for row in rows) for column in range(1, 5)), ""))
    rows.insert(0, ("class", "train", "test good", "test defective", "with masks", "notes"))
    width = max(len(row[0]) for row in rows)
    layout = f"{{:{width}}}  {{:>6}}  {{:>9}}  {{:>14}}  {{:>10}}  {{}}"
    return "\n".join(layout.format(*row).rstrip() for row in rows)
