"""Features of a frozen backbone, computed once and read back instead of the images.

<dir>/<split>-<16 hex digits of the key's hash>/ holds, a row an image in the order of the data set,
    features.bin  C x h x w numbers of the configured dtype
    masks.bin     H x W bits
    sizes.bin     two int32, height and width of the original; 0, as all of its row, for an image that could not be read
and key.json, everything that decides the rows. It is built under a name that nobody reads, and renamed when it is whole.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import time
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.base import ImageDataset
from datasets.loading import ImageLoader, SampleReader
from datasets.samplers import EvalSampler
from models.discriminators import Discriminator
from models.necks import Standardise
from utils.errors import UserError
from utils.process.distributed import Process, attempt, broadcast, gather, on_main, to_device
from utils.process.skipped import report_skipped
from utils.process.versions import versions

FORMAT = 1  # raise it when the files change, or when changed code makes other features of the same weights
KEY = "key.json"
AUGMENTATIONS = ("hflip", "vflip", "rotate", "colorjitter")
WHERE_FROM = ("pretrained", "pretrained_model")  # says where weights came from; the key holds what they are
SPLITS = {"train": "training", "test": "test"}

log = logging.getLogger("uniad")


class ImagesChanged(UserError):
    """Images are not what they were when the key was made."""


def cached(
    data: ImageDataset, network: nn.Module, cfg: dict[str, Any], process: Process, split: str
) -> "ImageDataset | FeatureDataset":
    """`data` with its features from the cache, which is built where there is none yet; `data` itself where caching is off.

    `network` has the weights it will be used with; cfg is the whole configuration. One line says what was read or built, or
    why there is no cache. Every process must call it. Raises UserError for an image that cannot be read, unless those are
    skipped, features that the dtype cannot hold, and a folder that not all processes see.
    """
    settings = {**cfg["dataset"], **(cfg["dataset"].get(split) or {})}
    if settings["feature_cache"]["mode"] == "off":
        return data
    reason = why_not(data, network)
    if reason is None:
        arguments = (data, network, cfg["net"], settings, process, split)
        try:
            try:
                return open_or_build(*arguments)
            except ImagesChanged:  # in every process
                if data.on_bad_image == "stop":
                    raise
                log.warning("feature cache: images were changed while their features were computed, it is built once more")
                return open_or_build(*arguments)
        except OSError as error:  # the same one in every process
            reason = f"{error.filename or settings['feature_cache']['dir']}: {error.strerror or error}"
    log.info("feature cache: off for the %s images: %s", SPLITS[split], reason)
    return data


def why_not(data: ImageDataset, network: nn.Module) -> str | None:
    """What makes features computed once the wrong ones, or impossible to keep; None: nothing."""
    if not hasattr(os, "posix_fallocate"):
        return "this system does not reserve room on a disk"
    if active := [name for name in AUGMENTATIONS if data.training and getattr(data.transform, name)]:
        return f"augmentation ({', '.join(active)}) changes them every epoch"
    for name, subnet in list(network.named_children())[:2]:
        if any(parameter.requires_grad for parameter in subnet.parameters()):
            return f"the {name} is trained (see frozen_layers)"
    if any(isinstance(subnet, Discriminator) for subnet in network.children()):
        return "the discriminator reads the backbone's own features, of pseudo-anomalies that are never twice the same"
    if any(isinstance(module, Standardise) for module in network.modules()):
        return "what features are standardised by is found in training"
    return None


def open_or_build(
    data: ImageDataset, network: nn.Module, net: list[dict], settings: dict[str, Any], process: Process, split: str
) -> "FeatureDataset":
    """UserError as in `cached`, or OSError where folder or disk do not serve; either is raised in every process."""
    started = time.monotonic()
    folder = Path(settings["feature_cache"]["dir"])

    def look() -> tuple[Cache, str]:
        cache = Cache.of_key(make_key(data, network, net, settings, process.device), folder, split)
        return cache, cache.fault(data)

    cache, fault = on_main(look, process)
    if fault:
        images = copy(data)
        images.training = False  # all are read in order: none takes the place of a bad one
        loader = ImageLoader(
            images,
            batch_size=settings["batch_size"],
            sampler=EvalSampler(len(data), process.rank, process.world_size),
            num_workers=settings["workers"],
            pin_memory=process.device.type == "cuda",
            generator=torch.Generator(),  # starting a loader leaves the global random state alone
        )
        build(cache, fault, loader, network, process)
        report_skipped(loader, process, "feature cache")
    check_shared(cache.is_whole(), folder, process)
    source = f"built in {time.monotonic() - started:.0f} s:" if fault else "read from"
    megabytes = sum(cache.files.values()) / 1e6
    log.info("feature cache: %d %s images, %.1f MB, %s %s", len(data), SPLITS[split], megabytes, source, cache.folder)
    return FeatureDataset(data, cache)


def make_key(
    data: ImageDataset, network: nn.Module, net: list[dict], settings: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Everything that decides the rows of a cache, as JSON holds it."""
    before, neck = net[:2], net[1]["kwargs"]
    reader = settings.get("image_reader") or {"kwargs": {}}
    key = {
        "format": FORMAT,
        "versions": versions(),
        "device": device.type,
        "dtype": settings["feature_cache"]["dtype"],
        "shape": [len(data), *neck["outplanes"], *(side // neck["outstrides"][0] for side in settings["input_size"])],
        "net": [[s["type"], {k: v for k, v in s["kwargs"].items() if k not in WHERE_FROM}] for s in before],
        "weights": hash_weights(list(network.children())[:2]),
        "dataset": settings["type"],
        **{name: settings[name] for name in ("input_size", "pixel_mean", "pixel_std")},
        "color_mode": reader["kwargs"].get("color_mode"),
        "resample": data.transform.resample.name,
        "images": hash_images(data),
    }
    return json.loads(json.dumps(key))


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


@dataclass(frozen=True)
class Cache:
    """The folder that belongs to a key, whether it is there or not."""

    folder: Path
    key: dict[str, Any]

    @classmethod
    def of_key(cls, key: dict[str, Any], parent: Path, split: str) -> "Cache":
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cls(parent / f"{split}-{digest[:16]}", key)

    @property
    def row_bytes(self) -> dict[str, int]:
        """The name of each file, and how many bytes a row of it has."""
        height, width = self.key["input_size"]
        feature = math.prod(self.key["shape"][1:]) * getattr(torch, self.key["dtype"]).itemsize
        return {"features.bin": feature, "masks.bin": -(-height * width // 8), "sizes.bin": 8}

    @property
    def files(self) -> dict[str, int]:
        """The name of each file and its size in bytes."""
        return {name: self.key["shape"][0] * size for name, size in self.row_bytes.items()}

    def is_whole(self) -> bool:
        try:
            key = json.loads((self.folder / KEY).read_text(encoding="utf-8"))
            return key == self.key and all((self.folder / name).stat().st_size == size for name, size in self.files.items())
        except (OSError, ValueError):
            return False

    def bad_rows(self, folder: Path | None = None) -> list[int]:
        """The images that could not be read; `folder`: where the files are, if they do not have their name yet."""
        return np.flatnonzero(np.fromfile((folder or self.folder) / "sizes.bin", np.int64) == 0).tolist()

    def fault(self, data: ImageDataset) -> str:
        """Why it must be built, as the predicate of a sentence; empty: it serves.

        UserError for an image that cannot be read, then as now, unless those are skipped.
        """
        if not self.is_whole():
            return "is damaged"
        for index in self.bad_rows():
            try:
                data.load(index)
                return f"lacks {data.filenames[index]}, which can be read now"
            except UserError:
                if data.on_bad_image == "stop":
                    raise
        return ""

    def allocate(self, fault: str) -> Path:
        """A new folder to build in, its files at full size. Removes what killed runs left, and the cache that has the fault."""
        parent, host = self.folder.parent, socket.gethostname()
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f".*-{'[0-9a-f]' * 16}.{host}.*.tmp"):
            if not is_another_process(int(leftover.suffixes[-2][1:])):
                shutil.rmtree(leftover, ignore_errors=True)
        temporary = parent / f".{self.folder.name}.{host}.{os.getpid()}.tmp"
        if self.folder.exists():
            log.info("feature cache: %s %s, it is built again", self.folder, fault)
            with suppress(FileNotFoundError):  # another run found it too, and was quicker
                self.folder.rename(temporary)
                shutil.rmtree(temporary)
        temporary.mkdir()
        try:
            for name, size in self.files.items():  # takes the room now: a full disk is known before the first row
                with open(temporary / name, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            shutil.rmtree(temporary)
            raise
        return temporary

    def publish(self, temporary: Path) -> None:
        """Give the built folder its name; where another run was quicker, that one's is used."""
        with open(temporary / KEY, "w", encoding="utf-8") as file:
            json.dump(self.key, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.rename(self.folder)
        except OSError:
            if not self.is_whole():
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


def build(cache: Cache, fault: str, loader: ImageLoader, network: nn.Module, process: Process) -> None:
    """Build the folder of `cache`, each process with its share of the images; errors as in `open_or_build`."""
    temporary = on_main(lambda: cache.allocate(fault), process)

    def finish() -> None:
        if hash_images(loader.dataset) != cache.key["images"]:
            raise ImagesChanged(f"images were changed while their features were computed for {cache.folder}: start again")
        if len(cache.bad_rows(temporary)) == len(loader.dataset):
            raise UserError(f"no image can be read, of {len(loader.dataset)}: see the log")
        cache.publish(temporary)

    try:
        check_shared(temporary.is_dir(), cache.folder.parent, process)
        _, error = attempt(lambda: write_rows(temporary, cache, loader, network, process))
        for failure in filter(None, broadcast(gather(error, process), process)):
            raise failure
        on_main(finish, process)
    finally:
        if process.is_main:
            shutil.rmtree(temporary, ignore_errors=True)  # where it failed; else it has its name now
            with suppress(OSError):  # other caches are in it
                temporary.parent.rmdir()


@torch.no_grad()
def write_rows(folder: Path, cache: Cache, loader: ImageLoader, network: nn.Module, process: Process) -> None:
    """Compute the features of the loader's images in float32 and write their rows to their places in the files of `folder`.

    The rows of images that are skipped stay as they were allocated, zeros.
    """
    subnets = [subnet.eval() for subnet in list(network.children())[:2]]
    dtype = getattr(torch, cache.key["dtype"])
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(folder / name, "wb", buffering=0, opener=lambda path, _: os.open(path, os.O_WRONLY)))
            for name in cache.files
        ]
        progress = None if process.is_main else True
        for batch in tqdm(loader, desc=f"features, {cache.folder.name}", leave=False, disable=progress):
            outputs = to_device(batch, process.device)
            for subnet in subnets:
                outputs.update(subnet(outputs))
            features = outputs["feature_align"].to(dtype)  # B x C x h x w
            finite = features.flatten(1).isfinite().all(dim=1)
            if not finite.all():
                name = batch["filename"][int(finite.int().argmin())]
                raise UserError(f"{name}: its features are not finite as {cache.key['dtype']} (dataset.feature_cache.dtype)")
            masks = np.packbits(batch["mask"].flatten(1).numpy().astype(bool), axis=1)  # B x bytes
            sizes = torch.stack([batch["height"], batch["width"]], dim=1).int()  # B x 2
            for file, rows in zip(files, (as_bytes(features), masks, as_bytes(sizes)), strict=True):
                for index, row in zip(batch["index"].tolist(), rows, strict=True):
                    if os.pwrite(file.fileno(), row, index * len(row)) != len(row):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        for file in files:
            os.fsync(file.fileno())


class FeatureDataset(SampleReader):
    """The images of `data` as their features, from a whole cache.

    A sample is a dict as in `ImageDataset`, with feature_align C x h x w float32 in the place of the image; an image that could
    not be read for the cache is bad here too.
    """

    def __init__(self, data: ImageDataset, cache: Cache) -> None:
        super().__init__(data.filenames, data.training, data.on_bad_image)
        self.data, self.cache = data, cache
        self.labels, self.clsnames, self.warned = data.labels, data.clsnames, data.warned
        self.epoch = 0
        self.maps: list[np.ndarray] = []

    def read_rgb(self, index: int) -> np.ndarray:
        """The original picture, h x w x 3 uint8 RGB, for visualisation."""
        return self.data.read_rgb(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": []}  # a worker maps the files itself: pickled, a map would be the whole array

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.maps:
            rows = self.cache.row_bytes.items()
            self.maps = [np.memmap(self.cache.folder / name, np.uint8, "r", shape=(len(self), size)) for name, size in rows]
        features, mask, size = (np.array(rows[index]) for rows in self.maps)  # copies of bytes
        height, width = self.cache.key["input_size"]
        dtype, shape = getattr(torch, self.cache.key["dtype"]), self.cache.key["shape"][1:]
        original_height, original_width = size.view(np.int32).tolist()
        if not original_height:
            self.data.load(index)  # says why
            raise UserError(f"{self.filenames[index]} could not be read when features were computed: start again to take it in")
        return {
            "feature_align": torch.from_numpy(features).view(dtype).reshape(shape).float(),
            "mask": torch.from_numpy(np.unpackbits(mask, count=height * width)).reshape(1, height, width).float(),
            "label": self.labels[index],
            "clsname": self.clsnames[index],
            "filename": self.filenames[index],
            "height": original_height,
            "width": original_width,
            "index": index,
        }


def check_shared(is_there: bool, folder: Path, process: Process) -> None:
    """UserError, in every process, if what rank 0 wrote into `folder` is not there in each of them."""
    if not all(broadcast(gather(is_there, process), process)):
        raise UserError(f"dataset.feature_cache.dir {folder} must be on a disk that all processes share")
