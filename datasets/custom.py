"""Any data set given as an image folder and a list of its images."""

import numpy as np

from datasets.base import ImageDataset, describe_file
from datasets.image_reader import ImageReader
from datasets.lists import read_list
from datasets.transforms import Transform
from utils.errors import UserError


class CustomDataset(ImageDataset):
    """The images named in `meta_file` (see `datasets.lists`), in the order of its lines; `class_name`: of this class only."""

    def __init__(
        self,
        meta_file: str,
        reader: ImageReader,
        transform: Transform,
        training: bool,
        seed: int = 0,
        class_name: str | None = None,
    ) -> None:
        records = read_list(meta_file)
        if class_name is not None:
            classes = sorted({record["clsname"] for record in records})
            records = [record for record in records if record["clsname"] == class_name]
            if not records:
                raise UserError(f"{meta_file} has no image of the class '{class_name}': its classes are {', '.join(classes)}")
        super().__init__(
            filenames=[record["filename"] for record in records],
            labels=[record["label"] for record in records],
            clsnames=[record["clsname"] for record in records],
            transform=transform,
            training=training,
            seed=seed,
        )
        self.masknames = [record["maskname"] for record in records]
        self.meta_file = meta_file
        self.reader = reader
        try:  # now, not hours later in the middle of an epoch
            for name in (*self.filenames, *filter(None, self.masknames)):
                reader.check_exists(name)
        except UserError as error:
            raise UserError(f"{error} (listed in {meta_file})") from None

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """As in `ImageDataset`, the image in the reader's color_mode; UserError for a bad file or a mask of another size."""
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

    def read_rgb(self, index: int) -> np.ndarray:
        """The original picture, h x w x 3 uint8 RGB whatever the reader's color_mode."""
        return self.reader.read(self.filenames[index], color_mode="RGB")

    def sources(self) -> list[tuple[str, int, int]]:
        """As in `ImageDataset`: each image and, directly behind it, its mask if it has one."""
        pairs = zip(self.filenames, self.masknames, strict=True)
        return [describe_file(self.reader.image_dir / name) for pair in pairs for name in pair if name]
