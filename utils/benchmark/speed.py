"""Speed of training and inference, compared with the plain reference and with the machine's matrix products."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from models import build_network
from models.backbones.specs import SPECS
from models.losses import Criterion
from models.network import Network
from utils import optim
from utils.benchmark.plain import PlainNetwork
from utils.benchmark.plain_dinomaly import PlainDinomalyNetwork, plain_criterion
from utils.benchmark.process import fresh_process, in_fresh_process
from utils.config import to_plain
from utils.errors import UserError
from utils.process.distributed import Process, choose_device
from utils.process.memory import keep_freed_memory, peak_megabytes
from utils.process.precision import autocast
from utils.training.optimizer import build_optimizer, trained_parameters
from utils.training.trainer import Trainer

TASKS = {"train_step": 8, "feature_extraction": 8, "inference": 8, "inference_batch_1": 1}  # images in a batch
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REFERENCE = "reference"  # the plain network, in float32
SIDES = (REFERENCE, *PRECISIONS)
DINOMALY = "models.reconstructions.Dinomaly"
MATRIX = 2048  # side of the matrices whose product gives the machine's limit


def benchmark_config(config: EasyDict) -> dict[str, Any]:
    """The configuration to measure, as plain dicts, without pretrained weights. UserError if the plain reference lacks a part."""
    config = to_plain(config)
    backbone, reconstruction = config["net"][0], config["net"][-1]
    if reconstruction["type"] != DINOMALY:
        check_convolutional(*config["net"])
    if not backbone["frozen"]:
        raise UserError(f"net.{backbone['name']} must be frozen: a training step is measured from features computed once")
    backbone["kwargs"]["pretrained"] = False
    return config


def check_convolutional(backbone: dict, neck: dict, reconstruction: dict, *more: dict) -> None:
    """UserError for a `net` with a neck that PlainNetwork does not cover."""
    if reconstruction["type"] != "models.reconstructions.UniAD":
        raise UserError(
            f"net.{reconstruction['name']}.type must be models.reconstructions.UniAD or {DINOMALY}: they are measured"
        )
    if more:
        raise UserError(f"net.{more[0]['name']} has no plain reference: name a configuration without it")
    if neck["kwargs"]["standardise"]:
        raise UserError(f"net.{neck['name']}.kwargs.standardise has no plain reference: leave it out")
    if backbone["type"].rsplit(".")[-1] not in SPECS:
        raise UserError(f"net.{backbone['name']}.type {backbone['type']} has no plain reference: use one of {', '.join(SPECS)}")


def measure_speed(config: dict[str, Any], tasks: Sequence[str] = tuple(TASKS), rounds: int = 7) -> dict[str, Any]:
    """Measure a `benchmark_config` with random images on the first GPU, or else the CPU: `describe`, then numbers by task.

    A training step of the plain reference starts from images, ours from cached features. of_limit is a fraction of the speed at
    which all multiply-adds of the task would be one large matrix product in that precision.
    """
    report = in_fresh_process(describe, config)
    for task in tqdm(tasks, desc="benchmark", leave=False, disable=None):
        sides, batch = measure_task(config, task, rounds), TASKS[task]
        reference = sides.pop(REFERENCE)
        report[task] = {}
        for precision, side in sides.items():
            limit = report["machine"]["gflops"][precision] * 1e9 / (2 * report["multiply_adds"][task])  # images a second
            report[task][precision] = {
                "images_per_s": batch / side["seconds"],
                "reference_images_per_s": batch / reference["seconds"],
                "ratio": reference["seconds"] / side["seconds"],
                "of_limit": batch / side["seconds"] / limit,
                "peak_mb": side["peak_mb"],
                "reference_peak_mb": reference["peak_mb"],
            }
    return report


def describe(config: dict[str, Any]) -> dict[str, Any]:
    """What is measured once for all tasks; the multiply-adds are those of one image."""
    device = choose_device(0)
    counted = config | {"trainer": config["trainer"] | {"cuda_graph": False}}  # a recording would be counted several times
    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "gflops": {name: matrix_product_gflops(dtype, device) for name, dtype in PRECISIONS.items()},
        },
        "map_difference": {name: map_difference(config, dtype) for name, dtype in PRECISIONS.items()},
        "multiply_adds": {
            task: count_multiply_adds(build_run(counted, task, "float32")) / batch for task, batch in TASKS.items()
        },
    }


def measure_task(config: dict[str, Any], task: str, rounds: int) -> dict[str, dict[str, float]]:
    """{side: {seconds, peak_mb}}: seconds a batch, the median of `rounds`. The sides take turns, each in its own process."""
    with ExitStack() as stack:
        processes = {side: stack.enter_context(fresh_process(start_side, config, task, side)) for side in SIDES}
        turns = [{side: process.submit(time_side).result() for side, process in processes.items()} for _ in range(rounds + 1)]
    return {  # the first round is warm-up
        side: {"seconds": median(turn[side][0] for turn in turns[1:]), "peak_mb": turns[-1][side][1]} for side in SIDES
    }


_RUNS: list[Callable[[], object]] = []  # in a side's process: what it times


def start_side(config: dict[str, Any], task: str, side: str) -> None:
    keep_freed_memory()  # both sides: without it, a third of the plain reference's inference is spent on fetching memory
    _RUNS.append(build_run(config, task, side))


def time_side() -> tuple[float, float]:
    """Seconds of one run, and the process's peak of memory in 10⁶ bytes."""
    device = choose_device(0)
    seconds = seconds_of(_RUNS[0], device)
    return seconds, torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_megabytes()


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """From an idle device to an idle device."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def build_run(config: dict[str, Any], task: str, side: str) -> Callable[[], object]:
    """A function that runs the task on one batch of random images, as `side` does it."""
    torch.manual_seed(0)
    device, batch = choose_device(0), TASKS[task]
    dtype = PRECISIONS.get(side, torch.float32)
    ours, plain = build_networks(config["net"])
    network = (plain if side == REFERENCE else ours).to(device)
    inputs = {"image": random_images(config, batch).to(device)}
    if task == "train_step":
        if network is ours:
            with torch.no_grad():
                one = network.front({"image": inputs["image"][:1]})[network.reads]  # few, as the peak of memory is a step's
            inputs = {network.reads: torch.randn(batch, *one.shape[1:], device=device)}
        return training_step(config, network, inputs, dtype)
    network.requires_grad_(False).eval()
    extract = plain.extract if network is plain else ours.front
    forward = network if task.startswith("inference") else extract

    @torch.no_grad()
    def run() -> object:
        with autocast(device, dtype):
            return forward(inputs)

    return run


def random_images(config: dict[str, Any], number: int) -> Tensor:
    """As the network sees them, N x 3 x H x W."""
    return torch.randn(number, 3, *(config["dataset"].get("crop") or config["dataset"]["input_size"]))


def build_networks(net: Sequence[dict]) -> tuple[Network, PlainNetwork | PlainDinomalyNetwork]:
    """The network of a configuration and its plain reference, with the same weights."""
    ours, plain = build_network(net), (PlainDinomalyNetwork if net[-1]["type"] == DINOMALY else PlainNetwork)(net)
    backbone, *_, reconstruction = ours.children()
    plain.backbone.load_state_dict(backbone.state_dict())
    plain.reconstruction.load_state_dict(reconstruction.state_dict())
    return ours, plain


def training_step(
    config: dict[str, Any], network: nn.Module, inputs: dict[str, Tensor], dtype: torch.dtype
) -> Callable[[], float]:
    """One step of the trainer on `inputs`, with the network in `dtype`. A plain network has a plain loss and optimiser."""
    settings, process, criterion = (
        config["trainer"]["optimizer"],
        Process(device=choose_device(0)),
        Criterion(config["criterion"]),
    )
    if isinstance(network, Network):
        optimizer = build_optimizer(network, settings)
    else:
        optimizer = getattr(optim, settings["type"])(trained_parameters(network), **settings["kwargs"])
        if isinstance(network, PlainDinomalyNetwork):
            criterion = plain_criterion
    trainer = Trainer(network.train(), criterion, optimizer, None, config, process)  # needs no schedule
    trainer.precision = dtype
    if isinstance(network, Network):
        batch = len(next(iter(inputs.values())))
        inputs |= {"filename": [""] * batch, "step": torch.zeros((), device=process.device)}  # as in a run
        trainer.capture(batch)
    return partial(trainer.train_step, inputs)


def matrix_product_gflops(dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """The rate of a product of two large square matrices."""
    left, right = torch.randn(2, MATRIX, MATRIX, device=device).to(dtype)
    out = torch.empty_like(left)
    times = [seconds_of(lambda: torch.mm(left, right, out=out), device) for _ in range(repeats + 1)]
    return 2 * MATRIX**3 / median(times[1:]) / 1e9


def count_multiply_adds(run: Callable[[], object]) -> float:
    """The multiply-adds in the matrix products and convolutions of a run."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused kernel is not counted
        run()
    return counter.get_total_flops() / 2


@torch.no_grad()
def map_difference(config: dict[str, Any], dtype: torch.dtype) -> float:
    """The largest difference between both networks' anomaly maps of random images, as a fraction of the plain map's range."""
    torch.manual_seed(0)
    ours, plain = (network.eval().to(choose_device(0)) for network in build_networks(config["net"]))
    inputs = {"image": random_images(config, 2).to(choose_device(0))}
    expected = plain(inputs)["pred"]
    with autocast(expected.device, dtype):
        given = ours(inputs)["pred"]
    return ((given - expected).abs().max() / (expected.max() - expected.min())).item()
