"""Pictures of the features that UniAD reconstructed for an image, drawn by a vis decoder."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.images import ImageReader
from datasets.lists import walk_images
from datasets.transforms import Transform
from models.reconstructions.uniad import anomaly_map
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.naming import ANY_CLASS, find_images
from utils.process.distributed import Process, to_device
from utils.report.drawing import heat_map, normalise, save_picture
from utils.runs.vis_decoder import add_label, feature_shape, load_decoder, to_picture

BATCH_SIZE = 8  # images drawn at once; in eval mode it changes no picture

log = logging.getLogger("uniad")


class SavedFeatures(Dataset):
    """The features that evaluation saved for a class, each with its image.

    A sample is a dict: name "<class>/<kind>/<name>", image 3 x H x W and feature_rec C x h x w, float32. Raises UserError if
    there are no features, if none has an image, and for a file that holds something else.
    """

    def __init__(self, config: EasyDict, class_name: str) -> None:
        cfg = config.data
        names = find_features(cfg, class_name)
        self.folder, self.shape = Path(cfg.feature_dir), feature_shape(config)
        if not cfg.dataset_dir or not Path(cfg.dataset_dir).is_dir():
            raise UserError(f"data.dataset_dir {cfg.dataset_dir} is not a folder; set it to where the images are")
        self.reader = ImageReader(cfg.dataset_dir)
        self.transform = Transform(cfg.input_size, cfg.pixel_mean, cfg.pixel_std)
        pairs = list(zip(names, find_images(names, walk_images(cfg.dataset_dir).images, class_name), strict=True))
        self.items = [(name, image) for name, image in pairs if image is not None]
        lost = [name for name, image in pairs if image is None]
        if not self.items:
            raise UserError(
                f"{cfg.dataset_dir} (data.dataset_dir) has no image, or several, for any of the features in "
                f"{self.folder / class_name}; the first is {names[0]}.npy"
            )
        if lost:
            what = f"{len(lost)} of {len(names)} features are left out, the first is {lost[0]}.npy"
            log.warning("%s: %s (data.dataset_dir) has no image of that name, or several", what, cfg.dataset_dir)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, str | Tensor]:
        name, filename = self.items[index]
        image, _ = self.transform(self.reader.read(filename), None, None)
        features = read_feature_file(self.folder / f"{name}.npy", self.shape)
        return {"name": str(name), "image": image, "feature_rec": torch.from_numpy(features)}


@torch.no_grad()
def draw_reconstructions(config: EasyDict, process: Process, class_name: str) -> None:
    """Draw saver.save_dir/<class>/<kind>/<name>.jpg for all saved features of the class.

    Left: the image above the decoded reconstruction. Right: the anomaly map, on one scale for the class, above UniAD's decoded
    input features. UniAD made the differences between the two decoded pictures; what both lack, the decoder cannot draw.
    """
    data = SavedFeatures(config, class_name)
    network = load_decoder(config, process)
    *_, decoder = network.children()
    loader = DataLoader(data, BATCH_SIZE)
    # A first pass for the scale; it also finds a bad file before anything is drawn.
    limits = [(maps.min(), maps.max()) for _, _, maps in compare(network, loader, process, "compare")]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for batch, feature_align, maps in compare(network, loader, process, "draw"):
        drawings = [decoder({"feature_align": features})["image_rec"] for features in (batch["feature_rec"], feature_align)]
        for i, name in enumerate(batch["name"]):
            image, reconstruction, original = (
                to_picture(images[i], config.data.pixel_mean, config.data.pixel_std) for images in (batch["image"], *drawings)
            )
            left = [add_label(image, "image"), add_label(reconstruction, "decoded reconstruction")]
            heat = heat_map(image, normalise(maps[i], low, high))
            right = [add_label(heat, "anomaly map"), add_label(original, "decoded input features")]
            save_picture(config.saver.save_dir, f"{name}.jpg", np.hstack([np.vstack(left), np.vstack(right)]))
    log.info("pictures of %d images in %s", len(data), Path(config.saver.save_dir) / class_name)


def compare(
    network: nn.Module, loader: DataLoader, process: Process, action: str
) -> Iterator[tuple[dict[str, Tensor | list[str]], Tensor, np.ndarray]]:
    """For each batch of SavedFeatures: the batch, its images' own features BxCxhxw, and the anomaly maps BxHxW."""
    backbone, neck, _ = network.children()
    for batch in tqdm(loader, desc=action, leave=False, disable=None):
        batch = to_device(batch, process.device)
        feature_align = neck(backbone(batch))["feature_align"]  # B x C x h x w
        stride = batch["image"].shape[-1] // feature_align.shape[-1]
        maps = anomaly_map(batch["feature_rec"], feature_align, stride)  # B x 1 x H x W
        yield batch, feature_align, maps.squeeze(1).cpu().numpy()


def recon_classes(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The classes with features in data.feature_dir."""
    config = load_config(path, overrides, ("data",), class_name=ANY_CLASS)
    return sorted({name.parts[0] for name in find_features(config.data)})


def find_features(cfg: EasyDict, class_name: str | None = None) -> list[PurePath]:
    """Sorted "<class>/<kind>/<name>" of the .npy files below cfg.feature_dir, of one class or of all."""
    if not cfg.feature_dir:
        raise UserError("data.feature_dir is missing: the folder of the reconstructed features that evaluation saved")
    folder = Path(cfg.feature_dir)
    names = sorted(path.relative_to(folder).with_suffix("") for path in folder.glob("*/**/*.npy"))
    chosen = [name for name in names if class_name in (None, name.parts[0])]
    if not chosen:
        what = f"features of the class '{class_name}'" if class_name else "features"
        others = ", ".join(sorted({name.parts[0] for name in names}))
        how = f"save them with tools/train_val.py -e net.reconstruction.kwargs.save_recon.save_dir={folder}"
        raise UserError(f"there are no {what} in {folder}: {f'there are those of {others}' if others else how}")
    return chosen


def read_feature_file(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """C x h x w float32. Raises UserError naming the file if it holds something else."""
    try:
        with open(path, "rb") as file:
            features = np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # a damaged file can make the reader raise nearly anything
        raise UserError(f"{path}: damaged or not a file of features, save it again") from None
    if features.shape != shape:
        raise UserError(f"{path}: features of shape {features.shape}, but the vis decoder draws {shape} (C, h, w)")
    if features.dtype.kind != "f" or not np.isfinite(features).all():
        raise UserError(f"{path}: holds values that are not finite numbers")
    return features.astype(np.float32)
