"""A data set of the tiles of photographs."""

import numpy as np

from datasets.base import ImageDataset
from datasets.cached import FeatureDataset
from datasets.loading import SampleReader
from datasets.tiles import Layout
from utils.errors import UserError


class TileDataset(ImageDataset):
    """Each tile of each photograph of `whole` is a sample, with its photograph's name, label and class.

    The tiles of a photograph follow each other, so that a process which reads them in turn decodes it once. Tiles outside of the
    region of interest are left out. `layouts` has the tiles of each photograph, `photographs` the position in `whole` of each
    sample's. Where bad images are skipped, each photograph is read now, and one that cannot be is a single sample, a bad one.
    """

    def __init__(self, whole: ImageDataset) -> None:
        self.whole = whole
        self.failed: dict[int, str] = {}  # why photographs cannot be read, by position
        self.layouts = [self._find_layout(index) for index in range(len(whole))]
        numbered = [(photo, number) for photo, layout in enumerate(self.layouts) for number in range(len(layout.places))]
        self.photographs, self.numbers = map(list, zip(*numbered, strict=True))
        super().__init__(
            filenames=[whole.filenames[photo] for photo in self.photographs],
            labels=[whole.labels[photo] for photo in self.photographs],
            clsnames=[whole.clsnames[photo] for photo in self.photographs],
            transform=whole.transform,
            training=whole.training,
            seed=whole.seed,
            on_bad_image=whole.on_bad_image,
            pseudo_anomalies=whole.pseudo_anomalies,
            roi=whole.roi,
            tiles=whole.tiles,
        )
        self.last: tuple[int, np.ndarray, np.ndarray | None] | None = None  # the photograph that was read last, and its mask

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """As in `ImageDataset`; UserError also for a photograph whose size has changed."""
        photo, number = self.photographs[index], self.numbers[index]
        if photo in self.failed:
            raise UserError(self.failed[photo])
        layout = self.layouts[photo]
        if self.last is None or self.last[0] != photo:
            self.last = None  # frees its memory
            image, mask = self.whole.load(photo)
            if image.shape[:2] != layout.size:
                known, found = ("{1} x {0}".format(*size) for size in (layout.size, image.shape))
                raise UserError(f"{self.filenames[index]}: has {found} pixels, and had {known} when the run began")
            self.last = photo, image, mask
        _, image, mask = self.last
        return layout.cut(image, number), None if mask is None else layout.cut(mask, number)

    def _find_layout(self, index: int) -> Layout:
        """A photograph's tiles."""
        whole, skips = self.whole, self.whole.on_bad_image == "skip"
        try:
            size = whole.load(index)[0].shape[:2] if skips else whole.size(index)
            try:
                layout = whole.tiles.layout(size)
                return layout.inspected(whole.roi, whole.clsnames[index], whole.transform.input_size)
            except UserError as error:
                raise UserError(f"{whole.filenames[index]}: {error}") from None
        except UserError as error:
            if not skips:
                raise
            self.failed[index] = str(error)
            return Layout(whole.tiles.size, whole.tiles.size, ((0, 0),))

    def inside(self, index: int) -> np.ndarray | None:
        """As in `ImageDataset`."""
        if self.roi is None:
            return None
        layout = self.layouts[self.photographs[index]]
        return layout.inside(self.roi, self.clsnames[index], self.numbers[index], self.transform.input_size)

    def sources(self) -> list[tuple[str, int, int]]:
        """Those of the photographs."""
        return self.whole.sources()


def in_tiles(data: ImageDataset) -> ImageDataset:
    """The data set that a network sees: of tiles where dataset.tiles is set, else `data`."""
    return TileDataset(data) if data.tiles else data


def tiles_of(data: SampleReader) -> TileDataset | None:
    """The tiles that are the samples of a data set, or of one of their features; None: samples are photographs."""
    data = data.data if isinstance(data, FeatureDataset) else data
    return data if isinstance(data, TileDataset) else None
