"""A baseline without training: how far a feature is from the nearest of some normal features of all classes together."""

import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from utils.runs.start import describe, load, start_random
from utils.training.feature_cache import cached

BLOCK = 2**22  # distances that are held at a time, 16 MiB

log = logging.getLogger("uniad")


class NearestNeighbour(nn.Module):
    """Takes the place of the reconstruction: a token is "reconstructed" as the stored normal token that is nearest to it.

    Args:
        standardise: knows each channel's mean and deviation over normal features.
        tokens: M x C, normal features to compare with, averaged as `average` does; in the features' own units.
        stride: of the feature grid.
    """

    def __init__(self, standardise: Standardise, tokens: Tensor, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.standardise = standardise.eval()
        self.register_buffer("tokens", standardise(tokens.T[None, :, :, None])[0, :, :, 0].T.contiguous())  # M x C

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes `feature_align` BxCxhxw; returns `feature_rec` BxCxhxw, the nearest tokens in the features' own units.

        Also `distance` Bx1xhxw, Euclidean over sqrt(C), so in deviations, and the anomaly map `pred` Bx1xHxW, that enlarged.
        """
        averaged = average(inputs["feature_align"].float())  # B x C x h x w
        queries = self.standardise(averaged).movedim(1, -1)  # B x h x w x C
        nearest = self.tokens[find_nearest(queries.flatten(0, 2), self.tokens)].view_as(queries)  # B x h x w x C
        distance = (queries - nearest).square().mean(dim=-1).sqrt()[:, None]  # B x 1 x h x w
        return {
            "feature_rec": (nearest * self.standardise.deviation + self.standardise.mean).movedim(-1, 1),
            "distance": distance,
            "pred": enlarge(distance, [n * self.stride for n in distance.shape[2:]]),
        }


def average(features: Tensor) -> Tensor:
    """Each place of BxCxhxw as the mean of its 3x3 neighbourhood; zeros around the grid set its border apart."""
    return F.avg_pool2d(features, kernel_size=3, stride=1, padding=1)


def find_nearest(queries: Tensor, tokens: Tensor, block: int = BLOCK) -> Tensor:
    """For each of the queries, NxC, the position of the nearest of the tokens, MxC; `block` distances are held at a time."""
    half_norms = tokens.square().sum(dim=1) / 2  # M
    rows = max(1, block // len(tokens))
    # Half of the squared distance, less the query's own part, which is the same for all tokens.
    return torch.cat([torch.addmm(half_norms, part, tokens.T, alpha=-1).argmin(dim=1) for part in queries.split(rows)])


def choose_places(images: int, places: int, count: int, seed: int) -> dict[int, list[int]]:
    """Some places of all feature grids, `places` in each, drawn without repetition: of each image those chosen, ascending.

    All of them, where there are no more than `count`.
    """
    total = images * places
    chosen = defaultdict(list)
    for position in sorted(random.Random(seed).sample(range(total), min(count, total))):
        chosen[position // places].append(position % places)
    return dict(chosen)


@torch.no_grad()
def fit(batches: Iterable[tuple[Sequence[int], Tensor]], chosen: Mapping[int, Sequence[int]], stride: int) -> NearestNeighbour:
    """Read normal features once. batches: of each the images' positions, B, and features, BxCxhxw; chosen: see choose_places.

    Raises UserError where no token is among them.
    """
    standardise, tokens = None, []
    for indices, features in batches:
        features = features.float()
        standardise = standardise or Standardise(features.shape[1]).to(features.device)
        standardise(features)  # for the statistics that it gathers
        for index, grid in zip(indices, average(features).flatten(2), strict=True):  # C x hw
            if index in chosen:
                tokens.append(grid[:, chosen[index]].T)  # k x C
    if not tokens:
        raise UserError("no training image with a chosen token can be read: see the log, or give more --tokens")
    return NearestNeighbour(standardise, torch.cat(tokens), stride)


def read_features(network: nn.Module, loader: ImageLoader, process: Process) -> Iterator[tuple[list[int], Tensor]]:
    """Of each batch the images' positions in the data set and their features, BxCxhxw."""
    network.eval()
    for batch in tqdm(loader, desc="sample", leave=False, disable=None):
        yield batch["index"].tolist(), network(to_device(batch, process.device))["feature_align"]
    report_skipped(loader, process, "sampling")


def evaluate_nearest_neighbour(config: EasyDict, process: Process, tokens: int) -> None:
    """Choose `tokens` normal tokens, evaluate the distance to them, and write the result folder as evaluation does.

    Training images are read as test images are: once, without augmentation. Raises UserError for several processes.
    """
    if process.world_size > 1:
        raise UserError("the nearest neighbour is one process's work: start it without torchrun or srun")
    check_writable(config.evaluator.save_dir)
    seed = start_random(config, process)
    config = without_training(config, tokens)
    plain = to_plain(config)
    backbone, neck, last = plain["net"]
    network = build_network([backbone, neck]).requires_grad_(False).to(process.device)
    network.add_module(last["name"], nn.Identity())
    images = {split: build_dataset(config.dataset, split) for split in ("train", "test")}
    images["train"].training = False

    times = [time.perf_counter()]
    features = {split: cached(data, network, plain, process, split) for split, data in images.items()}
    train_loader, test_loader = (load(data, config, "test", process, seed=0) for data in features.values())  # both in order
    times.append(time.perf_counter())
    size, stride = config.dataset.input_size, neck["kwargs"]["outstrides"][0]
    chosen = choose_places(len(images["train"]), math.prod(side // stride for side in size), tokens, seed)
    neighbour = fit(read_features(network, train_loader, process), chosen, stride)
    network.add_module(last["name"], neighbour)
    counts = (len(neighbour.tokens), len(images["train"]), len(images["test"]))
    log.info("nearest of %d tokens from %d training images; %d test images; %s", *counts, describe(process))
    times.append(time.perf_counter())
    evaluation = evaluate(network, test_loader, Criterion(config.criterion), process)
    times.append(time.perf_counter())

    seconds = [end - start for start, end in pairwise(times)]
    log.info("features %.1f s, sampling %.1f s, scoring %.1f s; peak memory %.0f MB", *seconds, peak_megabytes())
    write_evaluation(config, {}, evaluation, compute_metrics(evaluation, config.evaluator.metrics), images["test"])


def without_training(config: EasyDict, tokens: int) -> EasyDict:
    """The configuration with the nearest neighbour in place of all that is trained; the report shows it."""
    plain = to_plain(config)
    backbone, neck, reconstruction = plain["net"][:3]
    neck["kwargs"]["standardise"] = False  # its statistics would come from training; NearestNeighbour has its own
    last = {**reconstruction, "type": "NearestNeighbour", "kwargs": {"tokens": tokens}}
    saver = {**plain["saver"], "load_path": f"none: nearest neighbour to {tokens:,} normal tokens"}
    evaluator = {**plain["evaluator"], "vis_compound": None, "vis_single": None}  # a trained model's pictures may lie there
    return EasyDict({**plain, "net": [backbone, neck, last], "saver": saver, "evaluator": evaluator})
