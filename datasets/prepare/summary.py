"""What a person should know of the lists: a table, and notes on each class."""

from collections import Counter

from datasets.lists import Record
from datasets.prepare.checks import Checked
from datasets.prepare.scan import Found, by_class

FEW = 8  # training images of a class
MOST_PAIRS = 10
Notes = dict[str, list[str]]  # of each class


def duplicates(found: Found, checked: dict[str, Checked]) -> list[tuple[Record, str]]:
    """The images of test and validation whose file is also in training, each with the name that it has there.

    `checked` may be empty, where the images are not at hand: none is known then.
    """
    if not checked:
        return []
    trained = {checked[line["filename"]].digest: line["filename"] for line in found.train}
    pairs = [(line, trained.get(checked[line["filename"]].digest)) for line in found.test + found.validation]
    return [(line, name) for line, name in pairs if name is not None]


def describe_duplicates(found: Found, checked: dict[str, Checked]) -> list[str]:
    """A line for each of the first `MOST_PAIRS` duplicates, and one for how many more there are."""
    pairs = duplicates(found, checked)
    lines = [f"the same file: {line['filename']} (test) and {name} (training)" for line, name in pairs[:MOST_PAIRS]]
    return lines + [f"and {len(pairs) - MOST_PAIRS} more"] * (len(pairs) > MOST_PAIRS)


def find_notes(found: Found, checked: dict[str, Checked]) -> Notes:
    """What a person should know of each class; `checked` as in `duplicates`."""
    notes: Notes = {}
    copies = Counter(line["clsname"] for line, _ in duplicates(found, checked))
    trained, tested, held = by_class(found.train), by_class(found.test), by_class(found.validation)
    for clsname in trained | tested:
        test = tested.get(clsname, [])
        defective = [line for line in test if line["label"]]
        own = [checked[line["filename"]] for line in trained.get(clsname, []) + test if line["filename"] in checked]
        counts = {
            "held out in validation.json": len(held.get(clsname, [])),
            "defective without mask": sum("maskname" not in line for line in defective),
            "empty masks": sum(result.empty_mask for result in own),
            "also in training": copies[clsname],
            "all but black (less than 8 bits used?)": sum(result.black for result in own),
        }
        few = len(trained.get(clsname, [])) < FEW
        notes[clsname] = [f"fewer than {FEW} training images"] if few else []
        notes[clsname] += ["no good test images"] if len(defective) == len(test) else []
        notes[clsname] += [] if defective else ["no defective test images"]
        notes[clsname] += [f"{count} {what}" for what, count in counts.items() if count]
    return notes


def table(found: Found, *notes: Notes) -> str:
    """A row a class and one of sums: how many images each list has, and the notes."""
    columns = ("class", "train", "test good", "test defective", "with masks", "notes")
    trained, tested = by_class(found.train), by_class(found.test)
    rows = []
    for clsname in sorted(trained | tested):
        train, test = trained.get(clsname, []), tested.get(clsname, [])
        defective = sum(line["label"] for line in test)
        masks = sum("maskname" in line for line in test)
        text = "; ".join(text for of_class in notes for text in of_class.get(clsname, []))
        rows.append((clsname, len(train), len(test) - defective, defective, masks, text))
    rows.append(("total", *(sum(row[column] for row in rows) for column in range(1, 5)), ""))
    width = max(len(row[0]) for row in (columns, *rows))
    layout = f"{{:{width}}}  {{:>6}}  {{:>9}}  {{:>14}}  {{:>10}}  {{}}"
    return "\n".join(layout.format(*row).rstrip() for row in (columns, *rows))
