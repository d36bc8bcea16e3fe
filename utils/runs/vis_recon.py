"""Pictures of what UniAD makes of an image: the features it reconstructed, drawn by a vis decoder."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.images import ImageReader
from datasets.lists import IMAGE_EXTENSIONS
from datasets.transforms import Transform
from models.reconstructions.uniad import anomaly_map
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.naming import ANY_CLASS, find_images
from utils.process.distributed import Process, to_device
from utils.report.drawing import heat_map, normalise, save_picture
from utils.runs.vis_decoder import feature_shape, load_decoder, to_picture, with_label

BATCH_SIZE = 8  # images drawn at once; eval mode, so it changes no picture

log = logging.getLogger("uniad")


class SavedFeatures(Dataset):
    """Features that evaluation saved for a class, each with its image, as they go into the network.

    A sample is a dict: name "<class>/<kind>/<name>", image 3xHxW and feature_rec Cxhxw, float32.

    Args:
        config: its `data` section and the shape of features that its `net` draws.
        class_name: the class.

    Raises UserError where there are no features or none has an image, and when read for a file of something else.
    """

    def __init__(self, config: EasyDict, class_name: str) -> None:
        cfg = config.data
        self.folder = feature_folder(cfg)
        self.shape = feature_shape(config)
        found = find_features(self.folder, class_name)
        if not cfg.dataset_dir or not Path(cfg.dataset_dir).is_dir():
            raise UserError(f"data.dataset_dir {cfg.dataset_dir} is not a folder; set it to where the images are")
        self.reader = ImageReader(cfg.dataset_dir)
        self.transform = Transform(cfg.input_size, cfg.pixel_mean, cfg.pixel_std)
        images = find_images(found, image_files(cfg.dataset_dir), class_name)
        alone = [name for name, image in zip(found, images, strict=True) if image is None]
        if len(alone) == len(found):
            raise UserError(
                f"{cfg.dataset_dir} (data.dataset_dir) has no image, or several, for any of the features in "
                f"{self.folder / class_name}; the first is {found[0]}.npy"
            )
        if alone:
            what = f"{len(alone)} of {len(found)} features are left out, the first is {alone[0]}.npy"
            log.warning("%s: %s (data.dataset_dir) has no image of that name, or several", what, cfg.dataset_dir)
        self.items = [(name, image) for name, image in zip(found, images, strict=True) if image is not None]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, str | Tensor]:
        name, filename = self.items[index]
        image, _ = self.transform(self.reader.read(filename), None, None)
        features = read_features(self.folder / f"{name}.npy", self.shape)
        return {"name": str(name), "image": image, "feature_rec": torch.from_numpy(features)}


@torch.no_grad()
def draw_reconstructions(config: EasyDict, process: Process, class_name: str) -> None:
    """Draw saver.save_dir/<class>/<kind>/<name>.jpg for all saved features of the class.

    The image above what the decoder draws of its reconstruction; on the right the anomaly map, above what the decoder draws of
    the features that went into UniAD: what differs between the two drawings UniAD changed, what both lack the decoder cannot
    draw. The map's scale is common to the class.
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
            left = [with_label(image, "image"), with_label(reconstruction, "decoded reconstruction")]
            heat = heat_map(image, normalise(maps[i], low, high))
            right = [with_label(heat, "anomaly map"), with_label(original, "decoded input features")]
            save_picture(Path(config.saver.save_dir) / f"{name}.jpg", np.hstack([np.vstack(left), np.vstack(right)]))
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
    """The classes that data.feature_dir holds features of."""
    folder = feature_folder(load_config(path, overrides, ("data",), class_name=ANY_CLASS).data)
    if not (classes := saved_classes(folder)):
        raise UserError(f"there are no features in {folder}: {how_to_save(folder)}")
    return classes


def find_features(folder: Path, class_name: str) -> list[PurePath]:
    """Sorted "<class>/<kind>/<name>" of the class's features, saved as .npy at any depth."""
    found = sorted(path.relative_to(folder).with_suffix("") for path in (folder / class_name).rglob("*.npy"))
    if not found:
        others = ", ".join(saved_classes(folder))
        instead = f"there are those of {others}" if others else how_to_save(folder)
        raise UserError(f"there are no features of the class '{class_name}' in {folder}: {instead}")
    return found


def feature_folder(cfg: EasyDict) -> Path:
    if not cfg.feature_dir:
        raise UserError("data.feature_dir is missing: the folder of the reconstructed features that evaluation saved")
    return Path(cfg.feature_dir)


def saved_classes(folder: Path) -> list[str]:
    folders = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(entry.name for entry in folders if any(entry.rglob("*.npy")))


def how_to_save(folder: Path) -> str:
    return f"save them with tools/train_val.py -e net.reconstruction.kwargs.save_recon.save_dir={folder}"


def read_features(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Cxhxw float32. Raises UserError naming the file where it holds something else."""
    try:
        with open(path, "rb") as file:
            features = np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # a damaged file can make the reader raise nearly anything
        raise UserError(f"{path}: damaged or not a file of features, save it anew") from None
    if features.shape != shape:
        raise UserError(f"{path}: features of shape {features.shape}, but the vis decoder draws {shape} (C, h, w)")
    if features.dtype.kind != "f" or not np.isfinite(features).all():
        raise UserError(f"{path}: holds values that are not finite numbers")
    return features.astype(np.float32)


def image_files(folder: str | Path) -> list[str]:
    """Sorted names of all images below the folder, relative to it; links are followed, hidden files are no images."""
    names, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:
            folders.clear()  # a link that leads back up
            continue
        visited.add(os.path.realpath(parent))
        folders.sort()
        images = [name for name in files if Path(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")]
        names += [os.path.relpath(os.path.join(parent, name), folder) for name in images]
    return sorted(names)
