"""The images that the reader of a layout found; checking, splitting and writing all work on this."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.lists import Record, Tree


@dataclass
class Scan:
    """The images below `root`, as records of `datasets.lists`, each in one of four lists.

    `validation` holds good images that the layout keeps out of training, `unsplit` good images that it assigns to neither
    training nor test. `joined` names masks that are still to be written, each with the masks whose union it is. All names are
    relative to root. `near_duplicates` counts for each class the images that the split kept together; `left_out` says why the
    reader uses an image in none of the lists; `tree` is all that lies below root.
    """

    root: Path
    train: list[Record] = field(default_factory=list)
    test: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    unsplit: list[Record] = field(default_factory=list)
    joined: dict[str, list[str]] = field(default_factory=dict)
    near_duplicates: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    tree: Tree = field(default_factory=Tree)

    def add(self, train: Iterable[Record], test: Iterable[Record]) -> None:
        self.train += train
        self.test += test

    def records(self) -> Iterator[Record]:
        yield from (*self.train, *self.test, *self.validation, *self.unsplit)

    def map(self, change: Callable[[Record], Record | None]) -> "Scan":
        """A copy in which every record is changed, or left out where `change` returns None."""
        lists = (self.train, self.test, self.validation, self.unsplit)
        changed = [[new for record in records if (new := change(record)) is not None] for records in lists]
        return replace(self, **dict(zip(("train", "test", "validation", "unsplit"), changed, strict=True)))

    def parts_of_mask(self, record: Record) -> list[str]:
        """The files that a record's mask consists of; empty where it has no mask."""
        maskname = record.get("maskname")
        return self.joined.get(maskname, [maskname]) if maskname else []


def shorten(lines: list[str], most: int) -> list[str]:
    """The first `most` lines, and one for how many more there are."""
    return lines[:most] + [f"and {len(lines) - most} more"] * (len(lines) > most)


def by_class(records: Iterable[Record]) -> defaultdict[str, list[Record]]:
    grouped = defaultdict(list)
    for record in records:
        grouped[record["clsname"]].append(record)
    return grouped
