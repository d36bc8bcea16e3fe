"""Features of a frozen backbone, computed once and read back in place of the images (datasets/cached.py has the format).

A cache lies in <dir>/<split>-<16 hex digits of its key's hash>. It is built under a temporary name and renamed when it is whole.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.base import ImageDataset
from datasets.cached import KEY, SAMPLE, FeatureDataset, ResizedImages, Rows, checksums, is_whole, row_sizes
from datasets.loading import ImageLoader
from datasets.samplers import EvalSampler
from models.discriminators import Discriminator
from models.necks import Standardise
from utils.errors import Interrupted, UserError
from utils.process.distributed import Process, attempt, broadcast, gather, on_main, to_device
from utils.process.precision import autocast, choose_precision
from utils.process.signals import StopSignals
from utils.process.skipped import report_skipped
from utils.process.versions import versions

FORMAT = 4  # raise it when the files change, or when changed code makes other features of the same weights
AUGMENTATIONS = ("hflip", "vflip", "rotate", "colorjitter")
WHERE_FROM = ("pretrained", "pretrained_model")  # says where weights came from; the key holds what they are
SPLITS = {"train": "training", "test": "test"}
SHARE = 0.5  # of a GPU's free memory, that training features may take

log = logging.getLogger("uniad")


class ImagesChanged(UserError):
    """The images differ from those that the key was made of."""


def cached(
    data: ImageDataset, network: nn.Module, cfg: dict[str, Any], process: Process, split: str
) -> ImageDataset | FeatureDataset:
    """`data` with its features from the cache, which is built if there is none; `data` itself where caching is off.

    Where features cannot be cached, a data set of image files reads its images from a cache at the network's input size.

    `network` has the weights it will be used with; cfg is the whole configuration. One line tells what was read or built, or
    why there is no cache. Every process must call it. Raises UserError for an image that cannot be read, unless such images
    are skipped, for features that the dtype cannot hold, and for a folder that not all processes see.
    """
    settings = {**cfg["dataset"], **(cfg["dataset"].get(split) or {})}
    if settings["feature_cache"]["mode"] == "off":
        return data
    reason = why_not(data, network)
    if reason is not None:
        log.info("feature cache: off for the %s images: %s", SPLITS[split], reason)
        if cfg["dataset"]["type"] != "custom" or not hasattr(os, "posix_fallocate"):
            return data
    precision = choose_precision((cfg.get("trainer") or {}).get("precision", "float32"))
    builder = Builder(data, network, cfg["net"], settings, process, split, precision, of_images=reason is not None)
    try:
        try:
            return builder.open_or_build()
        except ImagesChanged:  # in every process
            if data.on_bad_image == "stop":
                raise
            log.warning("%s: images were changed while their features were computed, it is built once more", builder.name)
            return builder.open_or_build()
    except OSError as error:  # the same one in every process
        reason = f"{error.filename or settings['feature_cache']['dir']}: {error.strerror or error}"
    log.info("%s: off for the %s images: %s", builder.name, SPLITS[split], reason)
    return data


def why_not(data: ImageDataset, network: nn.Module) -> str | None:
    """The reason against computing features once; None where there is none."""
    if not hasattr(os, "posix_fallocate"):
        return "this system cannot reserve room on a disk"
    if active := [name for name in AUGMENTATIONS if data.training and getattr(data.transform, name)]:
        return f"augmentation ({', '.join(active)}) changes them every epoch"
    for name, subnet in list(network.named_children())[: network.depth]:
        if any(parameter.requires_grad for parameter in subnet.parameters()):
            return f"the {name} is trained (see frozen_layers)"
    if any(isinstance(subnet, Discriminator) for subnet in network.children()):
        reason = "the discriminator reads the backbone's own features, "
        return reason + ("of pseudo-anomalies that are never twice the same" if data.training else "which it does not hold")
    if any(isinstance(module, Standardise) for module in network.modules()):
        return "the statistics for standardising features are gathered in training"
    return None


def hold_features(data: ImageDataset | FeatureDataset, device: torch.device) -> None:
    """Move cached features onto a GPU, if they take at most SHARE of its free memory. One line says so, or why they do not."""
    if device.type != "cuda" or not isinstance(data, FeatureDataset):
        return
    key, (free, _) = data.rows.key, torch.cuda.mem_get_info(device)
    size = key["shape"][0] * row_sizes(key)["features.bin"]
    if size > SHARE * free:
        log.info("feature cache: stays on the disk, %.1f GB are more than half of what is free on the GPU", size / 1e9)
        return
    data.hold(device)
    log.info("feature cache: %.1f GB of features are on the GPU", size / 1e9)


@dataclass
class Builder:
    """Opens the cache of a data set, and builds it where it is missing or damaged."""

    data: ImageDataset
    network: nn.Module
    net: list[dict[str, Any]]
    settings: dict[str, Any]  # the configuration's dataset section, merged for the split
    process: Process
    split: str
    precision: torch.dtype
    of_images: bool = False  # images of the network's input size in place of features

    @property
    def name(self) -> str:
        return "image cache" if self.of_images else "feature cache"

    def open_or_build(self) -> ImageDataset | FeatureDataset:
        """Raises UserError as in `cached`, or OSError where folder or disk do not serve; both in every process."""
        started, parent = time.monotonic(), Path(self.settings["feature_cache"]["dir"])
        key = on_main(self.make_key, self.process)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        folder = parent / f"{self.split}-{digest[:16]}"
        check = SAMPLE if self.settings["feature_cache"]["check"] == "sample" else len(self.data)
        builds = not on_main(lambda: is_whole(folder, key, check), self.process)
        if builds:
            self.build(folder, key)
        self.check_shared(is_whole(folder, key, 0), parent)
        if self.process.is_main:
            with suppress(OSError):  # a disk that may only be read
                os.utime(folder / KEY)  # its last use, for tools/caches.py
        source = f"built in {time.monotonic() - started:.0f} s:" if builds else "read from"
        megabytes = len(self.data) * sum(row_sizes(key).values()) / 1e6
        log.info("%s: %d %s images, %.1f MB, %s %s", self.name, len(self.data), SPLITS[self.split], megabytes, source, folder)
        if not self.of_images:
            return FeatureDataset(self.data, folder, key)
        data = copy(self.data)
        data.resized = Rows(folder, key)
        return data

    def make_key(self) -> dict[str, Any]:
        """Everything that decides the rows of a cache, as JSON holds it."""
        before, settings = self.net[: self.network.depth], self.settings
        seen = settings.get("crop") or settings["input_size"]
        reader = settings.get("image_reader") or {"kwargs": {}}
        key = {
            "format": FORMAT,
            "versions": versions(),
            "device": self.process.device.type,
            "dtype": settings["feature_cache"]["dtype"],
            "precision": str(self.precision),
            "reads": self.network.reads,
            "shape": None if self.of_images else [len(self.data), *self.shape_of_one(seen)],
            "seen_size": seen,
            "net": [[s["type"], {k: v for k, v in s["kwargs"].items() if k not in WHERE_FROM}] for s in before],
            "groups": self.net[1]["kwargs"].get("groups"),
            "weights": None if self.of_images else hash_weights(self.network.subnets[: self.network.depth]),
            "dataset": settings["type"],
            **{name: settings[name] for name in ("input_size", "pixel_mean", "pixel_std")},
            **{name: reader["kwargs"].get(name) for name in ("color_mode", "max_pixels")},
            "resample": self.data.transform.resample.name,
            "images": hash_images(self.data),
            "on_bad_image": self.data.on_bad_image,  # where bad images stop a run, no row may be empty
        }
        if self.data.roi and (self.data.tiles or not self.of_images):  # it decides which tiles there are
            key["roi"] = hashlib.sha256(json.dumps(sorted(self.data.roi.to_list())).encode()).hexdigest()
        if self.data.tiles:
            key["tiles"] = asdict(self.data.tiles)
        if self.of_images:
            size, of_network = settings["input_size"], ("device", "precision", "reads", "net", "groups", "weights")
            key = {name: value for name, value in key.items() if name not in (*of_network, "pixel_mean", "pixel_std")}
            key |= {"dtype": "uint8", "shape": [len(self.data), *size, 3], "seen_size": size}
        return json.loads(json.dumps(key))

    def shape_of_one(self, size: Sequence[int]) -> list[int]:
        """Of what the reconstruction reads of an image, H x W."""
        kwargs = self.net[1]["kwargs"]
        if self.network.reads == "feature_align":
            return [*kwargs["outplanes"], *(side // kwargs["outstrides"][0] for side in size)]
        prefix, (h, w) = self.network.subnets[0].prefix_tokens, kwargs["feature_size"]
        return [len(kwargs["groups"]), prefix + h * w, kwargs["inplanes"][0]]

    def build(self, folder: Path, key: dict[str, Any]) -> None:
        """Build the cache of `key` in `folder`, each process with its share of the images."""
        temporary = on_main(lambda: allocate(folder, key), self.process)

        def finish() -> None:
            if hash_images(self.data) != key["images"]:
                raise ImagesChanged(f"images were changed while their features were computed for {folder}: start again")
            if not np.fromfile(temporary / "sizes.bin", np.int64).any():
                raise UserError(f"no image can be read, of {len(self.data)}: see the log")
            publish(temporary, folder, key)

        try:
            self.check_shared(temporary.is_dir(), folder.parent)
            loader = self.loader()
            with StopSignals() as signals:
                _, error = attempt(lambda: self.write_rows(loader, temporary, key, signals))
                errors = broadcast(gather(error, self.process), self.process)
                number = signals.agreed(self.process)  # one may have come while this process waited for the others
            for failure in filter(None, errors):
                raise failure
            if number:
                raise stopped(number)
            on_main(finish, self.process)
            report_skipped(loader, self.process, self.name)
        finally:
            if self.process.is_main:
                shutil.rmtree(temporary, ignore_errors=True)  # after a failure; a finished cache has its name by now
                with suppress(OSError):  # other caches are in it
                    temporary.parent.rmdir()

    @torch.no_grad()
    def write_rows(self, loader: ImageLoader, folder: Path, key: dict[str, Any], signals: StopSignals) -> None:
        """Compute this process's share of the features in the run's precision, and write them to their rows.

        The rows of images that are skipped stay zero. Raises Interrupted after a signal.
        """
        self.network.eval()
        files = [os.open(folder / name, os.O_WRONLY) for name in row_sizes(key)]
        for batch in tqdm(loader, desc=f"features, {folder.name}", leave=False, disable=None if self.process.is_main else True):
            if self.of_images:
                features = batch["image"]  # B x H x W x 3 uint8
            else:
                with autocast(self.process.device, self.precision):
                    outputs = self.network.front(to_device(batch, self.process.device))
                features = outputs[key["reads"]].to(getattr(torch, key["dtype"]))  # B x ...
            finite = features.flatten(1).isfinite().all(dim=1)
            if not finite.all():
                name = batch["filename"][int(finite.int().argmin())]
                raise UserError(f"{name}: its features are not finite as {key['dtype']} (dataset.feature_cache.dtype)")
            masks = np.packbits(batch["mask"].flatten(1).numpy().astype(bool), axis=1)
            sizes = torch.stack([batch["height"], batch["width"]], dim=1).int()
            content = [as_bytes(features), masks, as_bytes(sizes)]
            content.append([checksums(rows) for rows in zip(*content, strict=True)])
            for file, rows in zip(files, content, strict=True):
                for index, row in zip(batch["index"].tolist(), rows, strict=True):
                    # A written map of the file would be shared by pages: another machine's rows on the same page could be lost.
                    os.pwrite(file, row, index * len(row))
            if signals.received:
                raise stopped(signals.received)
        for file in files:
            os.fsync(file)
            os.close(file)

    def loader(self) -> ImageLoader:
        """This process's share of the images, each read once and in order."""
        images = ResizedImages(self.data) if self.of_images else copy(self.data)
        images.training = False  # a bad image is not replaced by another one
        return ImageLoader(
            images,
            batch_size=self.settings["batch_size"],
            sampler=EvalSampler(len(images), self.process.rank, self.process.world_size),
            num_workers=self.settings["workers"],
            pin_memory=self.process.device.type == "cuda",
            generator=torch.Generator(),  # starting a loader leaves the global random state alone
        )

    def check_shared(self, is_there: bool, folder: Path) -> None:
        """Raises UserError, in every process, if what rank 0 wrote into `folder` is not there in each of them."""
        if not all(broadcast(gather(is_there, self.process), self.process)):
            raise UserError(f"dataset.feature_cache.dir {folder} must be on a disk that all processes share")


def stopped(number: int) -> Interrupted:
    name = signal.Signals(number).name
    return Interrupted(f"{name}: stopped while features were computed, nothing is saved; run the same command again")


def allocate(folder: Path, key: dict[str, Any]) -> Path:
    """A temporary folder with the files at full size. Removes a damaged cache, and what killed runs left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in leftovers(folder.parent):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    if folder.exists():
        log.info("feature cache: %s is damaged, it is built again", folder)
        shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, size in row_sizes(key).items():  # takes the room now: a full disk is noticed before the first row
            with open(temporary / name, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, key["shape"][0] * size)
    except OSError:
        shutil.rmtree(temporary)
        raise
    return temporary


def leftovers(parent: Path) -> list[Path]:
    """What killed runs of this machine left in a folder of caches."""
    found = parent.glob(f".*-{'[0-9a-f]' * 16}.{socket.gethostname()}.*.tmp")
    return [path for path in found if not is_another_process(int(path.suffixes[-2][1:]))]


def publish(temporary: Path, folder: Path, key: dict[str, Any]) -> None:
    """Give the finished cache its name; where another run was quicker, its cache is used."""
    with open(temporary / KEY, "w", encoding="utf-8") as file:
        json.dump(key, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    try:
        temporary.rename(folder)
    except OSError:
        if not is_whole(folder, key):
            raise


def is_another_process(pid: int) -> bool:
    """Whether a process of this machine other than this one has the number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return pid != os.getpid()


def hash_weights(subnets: list[nn.Module]) -> str:
    """Of the name, type, shape and bytes of every weight and buffer."""
    digest = hashlib.sha256()
    for subnet in subnets:
        for name, tensor in subnet.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(as_bytes(tensor.reshape(1, -1)))
    return digest.hexdigest()


def hash_images(data: ImageDataset) -> str:
    """Of the list, and of each file's path, size and time."""
    return hashlib.sha256(json.dumps([data.filenames, data.sources()]).encode()).hexdigest()


def as_bytes(rows: Tensor) -> np.ndarray:
    """N x ... of any type -> N x bytes."""
    return rows.cpu().contiguous().view(torch.uint8).flatten(1).numpy()
