"""What the reader of a layout hands on."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets.lists import Record


@dataclass
class Found:
    """The images of a data set below `root`, as records of `datasets.lists`, each to go into one list.

    `unsplit` holds good images that the layout gives to no side; `validation` good images held out from training. `joined` are
    masks that are yet to be written, each with the masks whose union it is; all names are relative to root.
    """

    root: Path
    train: list[Record] = field(default_factory=list)
    test: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    unsplit: list[Record] = field(default_factory=list)
    joined: dict[str, list[str]] = field(default_factory=dict)

    def lists(self) -> tuple[list[Record], ...]:
        return self.train, self.test, self.validation, self.unsplit

    def records(self) -> Iterator[Record]:
        for records in self.lists():
            yield from records

    def change(self, change: Callable[[Record], Record | None]) -> "Found":
        """With every record changed, or left out where the change is None."""
        lists = [[new for record in records if (new := change(record)) is not None] for records in self.lists()]
        return Found(self.root, *lists, joined=self.joined)

    def parts_of_mask(self, record: Record) -> list[str]:
        """The files that a record's mask consists of; none where it has no mask."""
        maskname = record.get("maskname")
        return self.joined.get(maskname, [maskname]) if maskname else []


def by_class(records: Iterable[Record]) -> dict[str, list[Record]]:
    grouped = defaultdict(list)
    for record in records:
        grouped[record["clsname"]].append(record)
    return dict(grouped)
