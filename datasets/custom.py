"""A data set given as an image folder and a list of its images."""

import hashlib
import logging

import numpy as np

from datasets.base import ImageDataset, describe_file
from datasets.images import ImageReader
from datasets.lists import read_numbered
from datasets.roi import Roi
from datasets.tiles import Tiles
from datasets.transforms import Transform
from utils.errors import UserError

log = logging.getLogger("uniad")


class CustomDataset(ImageDataset):
    """The images of the list `meta_file` (see `datasets.lists`), in its order; with `class_name` only that class.

    holdout: the share of each class's normal images that is excluded; with `held_out` the data set consists of exactly these.
    roi: see Roi.read.
    on_defective_train: "stop" raises UserError for a line with label 1, "skip" leaves such lines out, "keep" takes them.
    """

    def __init__(
        self,
        meta_file: str,
        reader: ImageReader,
        transform: Transform,
        training: bool,
        seed: int = 0,
        class_name: str | None = None,
        holdout: float = 0.0,
        held_out: bool = False,
        on_bad_image: str = "stop",
        on_defective_train: str = "keep",
        pseudo_anomalies: bool = False,
        roi: str | list[list[str]] | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        numbered = read_numbered(meta_file)
        if class_name is not None:
            classes = sorted({record["clsname"] for _, record in numbered})
            numbered = [(number, record) for number, record in numbered if record["clsname"] == class_name]
            if not numbered:
                raise UserError(f"{meta_file} has no image of the class '{class_name}': its classes are {', '.join(classes)}")
        _check_repeated(numbered, meta_file)
        records = [record for _, record in numbered]
        if on_defective_train != "keep" and (defective := [place for place in numbered if place[1]["label"]]):
            number, first = defective[0]
            what = f"{len(defective)} defective images (label 1) to train on, first {meta_file}:{number}, {first['filename']}"
            if len(defective) == len(records):
                raise UserError(f"{what}; no line of a good image (label 0) is left")
            if on_defective_train == "stop":
                raise UserError(f"{what}; remove such lines, or set dataset.on_defective_train=skip")
            log.warning("skipped: %s", what)
            records = [record for record in records if not record["label"]]
        if holdout or held_out:
            chosen = choose_held_out(records, holdout)
            records = [record for record in records if (record["filename"] in chosen) == held_out]
        clsnames = [record["clsname"] for record in records]
        super().__init__(
            filenames=[record["filename"] for record in records],
            labels=[record["label"] for record in records],
            clsnames=clsnames,
            transform=transform,
            training=training,
            seed=seed,
            on_bad_image=on_bad_image,
            pseudo_anomalies=pseudo_anomalies,
            roi=Roi.read(roi, clsnames) if roi else None,
            tiles=tiles,
        )
        self.masknames = [record["maskname"] for record in records]
        self.meta_file = meta_file
        self.reader = reader
        self._check_files()  # now, not in the middle of an epoch

    def _check_files(self) -> None:
        """UserError for a missing file; if bad images are skipped, only when no image exists. No name may lead outside."""
        names = (*self.filenames, *filter(None, self.masknames))
        try:
            for name in names:
                self.reader.check_inside(name)
        except UserError as error:
            raise UserError(f"{error} (listed in {self.meta_file})") from None
        if self.on_bad_image == "skip" and any(map(self.reader.exists, self.filenames)):
            return
        try:
            for name in names:
                self.reader.check_exists(name)
        except UserError as error:
            raise UserError(f"{error} (listed in {self.meta_file})") from None

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """As in `ImageDataset`, the image in the reader's color_mode; UserError also for a mask of another size."""
        filename, maskname = self.filenames[index], self.masknames[index]
        try:
            image = self.reader.read(filename)
            mask = self.reader.read_mask(maskname) if maskname else None
        except UserError as error:
            raise UserError(f"{error} (listed in {self.meta_file})") from None
        if mask is not None and mask.shape != image.shape[:2]:
            sizes = "{1} x {0}, its image {3} x {2}".format(*mask.shape, *image.shape)
            raise UserError(f"mask {maskname} is {sizes} pixels ({filename} in {self.meta_file}); they must be equally large")
        return image, mask

    def size(self, index: int) -> tuple[int, int]:
        """As in `ImageDataset`."""
        try:
            return self.reader.size(self.filenames[index])
        except UserError as error:
            raise UserError(f"{error} (listed in {self.meta_file})") from None

    def read_rgb(self, index: int) -> np.ndarray:
        """The original picture, h x w x 3 uint8; RGB regardless of the reader's color_mode."""
        return self.reader.read(self.filenames[index], color_mode="RGB")

    def sources(self) -> list[tuple[str, int, int]]:
        """As in `ImageDataset`: each image, followed by its mask if it has one."""
        pairs = zip(self.filenames, self.masknames, strict=True)
        return [describe_file(self.reader.image_dir / name) for pair in pairs for name in pair if name]


def _check_repeated(numbered: list[tuple[int, dict]], meta_file: str) -> None:
    """UserError where two lines call one image good and defective; a warning where they say the same."""
    first, again = {}, []
    for number, record in numbered:
        earlier, label = first.setdefault(record["filename"], (number, record["label"]))
        if label != record["label"]:
            what = f"{record['filename']} is good in one line and defective in another, {earlier}: remove one"
            raise UserError(f"{meta_file}:{number}: {what}")
        if earlier != number:
            again.append(f"{meta_file}:{number}, {record['filename']} as in line {earlier}")
    if again:
        log.warning("%d lines name an image again, which counts once more: the first is %s", len(again), again[0])


def choose_held_out(records: list[dict], share: float) -> set[str]:
    """Names of about `share` of each class's normal images, never all of them; near-duplicates stay together.

    The hash of a name, or of its group, decides. So the selection depends neither on the seed nor on the order of the list,
    changes little when images are added or removed, and grows with the share without replacing images.
    """
    chosen = set()
    for clsname in {record["clsname"] for record in records}:
        groups: dict[str, set[str]] = {}
        for record in records:
            if record["clsname"] == clsname and record["label"] == 0:
                groups.setdefault(record.get("group", record["filename"]), set()).add(record["filename"])
        total = len(set().union(*groups.values()))
        wanted = min(round(share * total), total - 1)
        for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()):
            if len(groups[name]) <= wanted:
                wanted -= len(groups[name])
                chosen |= groups[name]
    return chosen
