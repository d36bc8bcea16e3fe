"""A baseline without training: the distance of a feature to the nearest of some normal features of all classes together."""

import logging
import math
import random
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn
from tqdm import tqdm

from datasets.build import build_dataset
from datasets.loading import ImageLoader
from models import build_network
from models.losses import Criterion
from models.necks import Standardise
from models.reconstructions.uniad import enlarge
from utils.config import to_plain
from utils.errors import UserError
from utils.evaluation.evaluate import compute_metrics, evaluate
from utils.files import check_writable
from utils.process.distributed import Process, to_device
from utils.process.memory import peak_megabytes
from utils.process.skipped import report_skipped
from utils.runs.evaluate import write_evaluation
from utils.runs.start import build_loader, describe_process, seed_run
from utils.training.feature_cache import cached

MAX_DISTANCES = 2**22  # in memory at a time, 16 MiB

log = logging.getLogger("uniad")


class NearestNeighbour(nn.Module):
    """Takes the place of the reconstruction: a token is "reconstructed" as the nearest stored normal token.

    Args:
        standardise: with each channel's mean and deviation over normal features.
        tokens: M x C, normal features to compare with, averaged by `average`; in the features' own units.
        stride: of the feature grid.
    """

    def __init__(self, standardise: Standardise, tokens: Tensor, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.standardise = standardise.eval()
        self.register_buffer("tokens", standardise(tokens.T[None, :, :, None])[0, :, :, 0].T.contiguous())  # M x C

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes `feature_align` BxCxhxw; returns `feature_rec` BxCxhxw, the nearest tokens in the features' own units.

        Also `distance` Bx1xhxw, Euclidean over sqrt(C), in units of deviations, and the anomaly map `pred` Bx1xHxW, its
        enlargement.
        """
        averaged = average(inputs["feature_align"].float())  # B x C x h x w
        queries = self.standardise(averaged).movedim(1, -1)  # B x h x w x C
        nearest = self.tokens[find_nearest(queries.flatten(0, 2), self.tokens)].view_as(queries)  # B x h x w x C
        distance = (queries - nearest).square().mean(dim=-1).sqrt()[:, None]  # B x 1 x h x w
        return {
            "feature_rec": self.standardise.undo(nearest.movedim(-1, 1)),
            "distance": distance,
            "pred": enlarge(distance, [n * self.stride for n in distance.shape[2:]]),
        }


def average(features: Tensor) -> Tensor:
    """Each place of BxCxhxw as the mean of its 3x3 neighbourhood, with zeros around the grid."""
    return F.avg_pool2d(features, kernel_size=3, stride=1, padding=1)


def find_nearest(queries: Tensor, tokens: Tensor, max_distances: int = MAX_DISTANCES) -> Tensor:
    """For each query of NxC the position of the nearest token of MxC; holds `max_distances` in memory at a time."""
    half_norms = tokens.square().sum(dim=1) / 2  # M
    rows = max(1, max_distances // len(tokens))
    # Half of the squared distance, without the query's own norm, which is the same for all tokens.
    return torch.cat([torch.addmm(half_norms, part, tokens.T, alpha=-1).argmin(dim=1) for part in queries.split(rows)])


def choose_places(images: int, places: int, count: int, seed: int) -> Tensor:
    """`count` random places of all feature grids, or all places if there are fewer: images x places, True if chosen."""
    total = images * places
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[random.Random(seed).sample(range(total), min(count, total))] = True
    return chosen.view(images, places)


@torch.no_grad()
def fit(batches: Iterable[tuple[Tensor, Tensor]], chosen: Tensor, stride: int) -> NearestNeighbour:
    """Read normal features once. batches: the images' positions, B, and features, BxCxhxw; chosen: see choose_places.

    Raises UserError if the batches hold no chosen token.
    """
    standardise, tokens = None, []
    for indices, features in batches:
        features = features.float()
        standardise = standardise or Standardise(features.shape[1]).to(features.device)
        standardise(features)  # gathers statistics
        grids = average(features).flatten(2).transpose(1, 2)  # B x hw x C
        tokens.append(grids[chosen[indices].to(grids.device)])  # k x C
    if not any(map(len, tokens)):
        raise UserError("no training image with a chosen token can be read: see the log, or give more --tokens")
    return NearestNeighbour(standardise, torch.cat(tokens), stride)


def feature_batches(network: nn.Module, loader: ImageLoader, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
    """For each batch the images' positions in the data set and their features, BxCxhxw."""
    network.eval()
    for batch in tqdm(loader, desc="sample", leave=False, disable=None):
        yield batch["index"], network(to_device(batch, process.device))["feature_align"]
    report_skipped(loader, process, "sampling")


def evaluate_nearest_neighbour(config: EasyDict, process: Process, tokens: int) -> None:
    """Choose `tokens` normal tokens, evaluate the distance to them, and write the result folder as evaluation does.

    Training images are read like test images: once, without augmentation. Raises UserError for several processes.
    """
    if process.world_size > 1:
        raise UserError("the nearest neighbour is one process's work: start it without torchrun or srun")
    check_writable(config.evaluator.save_dir)
    seed = seed_run(config, process)
    config = replace_reconstruction(config, tokens)
    plain = to_plain(config)
    backbone, neck, last = plain["net"]
    network = build_network([backbone, neck]).requires_grad_(False).to(process.device)
    network.add_module(last["name"], nn.Identity())
    images = {split: build_dataset(config.dataset, split) for split in ("train", "test")}
    images["train"].training = False

    times = [time.perf_counter()]
    features = {split: cached(data, network, plain, process, split) for split, data in images.items()}
    train_loader, test_loader = (build_loader(data, config, "test", process) for data in features.values())  # both in order
    times.append(time.perf_counter())
    size, stride = config.dataset.input_size, neck["kwargs"]["outstrides"][0]
    chosen = choose_places(len(images["train"]), math.prod(side // stride for side in size), tokens, seed)
    neighbour = fit(feature_batches(network, train_loader, process), chosen, stride)
    network.add_module(last["name"], neighbour)
    counts = (len(neighbour.tokens), len(images["train"]), len(images["test"]))
    log.info("nearest of %d tokens from %d training images; %d test images; %s", *counts, describe_process(process))
    times.append(time.perf_counter())
    evaluation = evaluate(network, test_loader, Criterion(config.criterion), process)
    times.append(time.perf_counter())

    seconds = [end - start for start, end in pairwise(times)]
    log.info("features %.1f s, sampling %.1f s, scoring %.1f s; peak memory %.0f MB", *seconds, peak_megabytes())
    write_evaluation(config, {}, evaluation, compute_metrics(evaluation, config.evaluator.metrics), images["test"])


def replace_reconstruction(config: EasyDict, tokens: int) -> EasyDict:
    """The configuration with the nearest neighbour in place of everything that is trained; the report shows it."""
    plain = to_plain(config)
    backbone, neck, reconstruction = plain["net"][:3]
    neck["kwargs"]["standardise"] = False  # its statistics would come from training; NearestNeighbour has its own
    last = {**reconstruction, "type": "NearestNeighbour", "kwargs": {"tokens": tokens}}
    saver = {**plain["saver"], "load_path": f"none: nearest neighbour to {tokens:,} normal tokens"}
    evaluator = {**plain["evaluator"], "vis_compound": None, "vis_single": None}  # a trained model's pictures may lie there
    return EasyDict({**plain, "net": [backbone, neck, last], "saver": saver, "evaluator": evaluator})
