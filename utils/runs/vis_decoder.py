"""The vis decoder of one class: train it, and draw images from features with it (also for vis_query.py and vis_recon.py)."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn

from datasets.base import ImageDataset
from datasets.build import build_dataset
from datasets.lists import read_list
from datasets.tiled import in_tiles
from models import build_network
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.evaluation.naming import ANY_CLASS, matching_classes, names_in_class
from utils.process.checkpoint import find_start, load_checkpoint, load_network_state
from utils.process.distributed import Process, on_main
from utils.report.drawing import save_picture
from utils.runs.start import build_loader, describe_process, seed_run, writes
from utils.runs.train import build_trainer, clear_run, is_trained

NUM_CHECKS = 8  # images on a check sheet

log = logging.getLogger("uniad")


@writes("saver.save_dir", "saver.log_dir", "visualization.vis_dir")
def train_decoder(config: EasyDict, process: Process, overwrite: bool = False) -> None:
    """Train the decoder of dataset.class_name, with a check sheet every few epochs. Every process must call it."""
    check_net(config)
    start = on_main(lambda: find_start(config.saver, overwrite), process)
    seed = seed_run(config, process)
    train_set = in_tiles(build_dataset({**config.dataset, "on_defective_train": "keep"}, "train", seed))
    train_loader = build_loader(train_set, config, "train", process, seed)
    checks = check_set(config)
    log.info("%s: %d training images; %s", config.dataset.class_name, len(train_set), describe_process(config, "train", process))
    trainer = build_trainer(config, process, start, len(train_loader))
    if is_trained(trainer, len(train_loader)):
        return
    if overwrite:
        clear_run(config, process)

    def draw_sheet() -> dict[str, float]:
        if process.is_main and config.get("visualization"):
            chosen = np.linspace(0, len(checks) - 1, min(NUM_CHECKS, len(checks))).round().astype(int)
            if pairs := [pair for _, pair in draw_pairs(trainer.network, checks, chosen.tolist())]:
                save_picture(config.visualization.vis_dir, f"epoch_{trainer.epoch:04d}.jpg", np.hstack(pairs))
        return {}

    vis_freq = config.visualization.vis_freq_epoch if config.get("visualization") else trainer.epochs(train_loader)
    trainer.train(train_loader, draw_sheet, val_freq=vis_freq)
    log.info("%s is the result", Path(config.saver.save_dir) / "ckpt.pth.tar")


def draw_check_images(config: EasyDict, process: Process) -> None:
    """Draw each check image above its decoded features, with the decoder saver.load_path: vis_dir/<kind>/<name>.jpg."""
    if not config.get("visualization"):  # a section that is turned off is left out
        raise UserError("visualization is off in this configuration: there is no vis_dir to draw into")
    network = load_decoder(config, process)
    checks = check_set(config)
    names, count = names_in_class(checks.filenames, checks.clsnames), 0
    for index, pair in draw_pairs(network, checks, range(len(checks))):
        save_picture(config.visualization.vis_dir, f"{names[index]}.jpg", pair)
        count += 1
    log.info("pictures of %d images in %s", count, config.visualization.vis_dir)


def training_classes(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The classes in the training list; if its name holds {class_name}, the classes that have such a list."""
    cfg = load_config(path, overrides, ("dataset",), class_name=ANY_CLASS).dataset
    meta_file = {**cfg, **cfg.train}["meta_file"]
    if ANY_CLASS not in meta_file:
        return sorted({record["clsname"] for record in read_list(meta_file)})
    if not (classes := matching_classes(meta_file)):
        raise UserError(f"there is no list {meta_file}; tools/prepare_data.py KIND --per_class_dir NAME makes one for each class")
    return classes


def check_set(config: EasyDict) -> ImageDataset:
    """The class's test images, or its training images if the configuration has no test list; never augmented."""
    cfg = to_plain(config.dataset)
    has_own = {**cfg, **cfg["test"]}.get("meta_file")
    whole = {**cfg, "tiles": None}  # a sheet shows photographs
    return build_dataset(whole if has_own else {**whole, "test": cfg["train"]}, "test")


def check_net(config: EasyDict) -> None:
    if config.net[-1].type != "models.reconstructions.VisDecoder":
        raise UserError(f"net must end in a subnet of type models.reconstructions.VisDecoder, not {config.net[-1].type}")
    if config.net[1].kwargs.standardise:
        raise UserError(f"net.{config.net[1].name}.kwargs.standardise: vis decoders draw features as they are, leave it out")


def load_decoder(config: EasyDict, process: Process) -> nn.Module:
    """Backbone, neck and vis decoder of saver.load_path, in eval mode; UserError for a network without a vis decoder.

    The published scripts drew in training mode, in which a picture depends on the batch.
    """
    check_net(config)
    content = load_checkpoint(config.saver.load_path)
    network = build_network(config.net, with_pretrained=False).to(process.device)
    load_network_state(network, content["state_dict"], config.saver.load_path)
    return network.eval()


@torch.no_grad()
def draw_pairs(network: nn.Module, data: ImageDataset, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each index with its image, as the network takes it, above its decoded features: 2H x W x 3 uint8 RGB.

    An unreadable image raises UserError or, with on_bad_image "skip", is logged.
    """
    network.eval()
    device = next(network.parameters()).device
    mean, std = (values.flatten().tolist() for values in (data.transform.mean, data.transform.std))
    for index in indices:
        try:
            image = data[index]["image"][None].to(device)
        except UserError as error:
            if data.on_bad_image == "stop":
                raise
            log.warning("skipped: %s", error)
            continue
        outputs = network({"image": image})
        pair = np.vstack([to_picture(outputs[key][0], mean, std) for key in ("image", "image_rec")])
        yield index, np.ascontiguousarray(pair[..., ::-1]) if data.transform.bgr else pair


def to_picture(image: Tensor, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> np.ndarray:
    """A normalised 3 x H x W image as H x W x 3 uint8."""
    values = image.float().cpu().permute(1, 2, 0).numpy() * np.asarray(pixel_std) + np.asarray(pixel_mean)
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def feature_shape(config: EasyDict) -> tuple[int, int, int]:
    """(C, h, w) of the vis decoder's input at data.input_size."""
    kwargs = config.net[-1].kwargs
    h, w = (side // kwargs.instrides[0] for side in config.data.input_size)
    return kwargs.inplanes[0], h, w


def add_label(picture: np.ndarray, label: str) -> np.ndarray:
    """The picture below a white bar with the label, at most 25 ASCII letters: H x W x 3 -> (H + bar) x W x 3 uint8."""
    width = picture.shape[1]
    size = width / 500  # letter size in OpenCV's unit
    bar = np.full((width // 11, width, 3), 255, np.uint8)
    place, thickness = (width // 50, len(bar) * 7 // 10), round(size + 0.5)
    cv2.putText(bar, label, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), thickness, cv2.LINE_AA)
    return np.vstack([bar, picture])
