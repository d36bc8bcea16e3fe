"""Speed of training and inference beside the plain reference, and beside what the machine's matrix products allow."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models.backbones import BACKBONES
from models.necks import MFCN
from models.network import Network
from models.reconstructions import UniAD
from utils.benchmark.plain import PlainNetwork
from utils.memory import keep_freed_memory

SIDE = 224
MATRIX = 2048  # side of the matrices whose product is the machine's limit
JITTER = {"scale": 20.0, "prob": 1.0}
NEIGHBORS = {"neighbor_size": [7, 7], "mask": [True, True, True]}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class SpeedRow:
    """Seconds an image, medians over interleaved rounds. The plain reference is in float32 always."""

    task: str  # "training step" or "inference"
    precision: str
    plain: float
    ours: float
    limit: float  # the multiply-adds of the task at the rate of a large matrix product in this precision
    spent_on: dict[str, float]  # operators by their share of the time, the largest first

    @property
    def ratio(self) -> float:
        return self.plain / self.ours

    @property
    def limit_reached(self) -> float:
        return self.limit / self.ours


@dataclass(frozen=True)
class Speed:
    """Rows of the table; multiply-adds an image by task; GFLOP/s by precision; and how far the two models' maps differ."""

    rows: list[SpeedRow]
    multiply_adds: dict[str, float]
    gflops: dict[str, float]
    difference: dict[str, float]  # by precision, largest difference of a map, as a part of the map's range
    batch: int
    threads: int


def measure_speed(batch: int = 8, rounds: int = 7) -> Speed:
    """EfficientNet-B4 and UniAD at 224x224 with random weights, with as many threads as torch has been set to.

    Training: the plain reference's whole step from images, ours from cached features. Inference: from images to maps.
    The plain reference runs in a process of its own, whose memory is managed as by default.
    """
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    ours, plain = build_networks()
    images = torch.randn(batch, 3, SIDE, SIDE)
    features = infer(ours, images, torch.float32)["feature_align"]
    difference = {name: map_difference(ours, plain, images, dtype) for name, dtype in PRECISIONS.items()}
    gflops = {name: matrix_product_gflops(dtype) for name, dtype in PRECISIONS.items()}
    tasks: dict[str, dict[str, Callable[[], object]]] = {
        "training step": {
            name: training_step(ours.reconstruction, lambda: ours.reconstruction({"feature_align": features}), dtype)
            for name, dtype in PRECISIONS.items()
        },
        "inference": {name: lambda dtype=dtype: infer(ours, images, dtype) for name, dtype in PRECISIONS.items()},
    }

    rows, multiply_adds = [], {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_plain, initargs=(batch, threads)) as plain_process:
        for task, runs in tasks.items():
            multiply_adds[task] = count_multiply_adds(ours, images, features, task) / batch
            for precision, run in runs.items():
                timers = {
                    "plain": lambda task=task: plain_process.submit(plain_seconds, task).result(),
                    "ours": lambda run=run: seconds_of(run),
                }
                seconds = interleaved_medians(timers, rounds)
                limit = 2 * multiply_adds[task] / (gflops[precision] * 1e9)
                times = (seconds["plain"] / batch, seconds["ours"] / batch)
                rows.append(SpeedRow(task, precision, *times, limit, operator_shares(run)))
    return Speed(rows, multiply_adds, gflops, difference, batch, threads)


def format_speed(speed: Speed) -> str:
    """The table, and below it what each row's time goes to."""
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in speed.gflops.items())
    differences = ", ".join(f"{name} {value:.0e}" for name, value in speed.difference.items())
    lines = [
        f"UniAD on EfficientNet-B4, {SIDE}x{SIDE}, batch {speed.batch}, {speed.threads} threads; milliseconds an image",
        f"matrix product: {rates}; maps differ from the plain reference's by (of their range): {differences}",
        "task           precision    plain     ours  ratio    limit  reached",
    ]
    for row in speed.rows:
        milliseconds = [1e3 * seconds for seconds in (row.plain, row.ours, row.limit)]
        lines.append(
            f"{row.task:<15}{row.precision:<10}{milliseconds[0]:>8.1f}{milliseconds[1]:>9.1f}{row.ratio:>6.2f}x"
            f"{milliseconds[2]:>9.1f}{row.limit_reached:>8.0%}"
        )
    for row in speed.rows:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row.spent_on.items())
        lines.append(f"{row.task}, {row.precision}: {shares}")
    return "\n".join(lines)


def build_networks() -> tuple[Network, PlainNetwork]:
    """The model of the MVTec-AD configuration and the plain reference, with the same random weights; the backbone is frozen."""
    subnets = {
        "backbone": BACKBONES["efficientnet_b4"](pretrained=False, outlayers=[1, 2, 3, 4]),
        "neck": MFCN([24, 32, 56, 160], [272], [2, 4, 8, 16], [16]),
        "reconstruction": UniAD([272], [16], (14, 14), JITTER, NEIGHBORS, initializer={"method": "xavier_uniform"}),
    }
    ours, plain = Network(subnets, frozen=["backbone"]), PlainNetwork()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def training_step(
    network: nn.Module, forward: Callable[[], dict[str, Tensor]], dtype: torch.dtype, fused: bool = True
) -> Callable[[], None]:
    """One step as in training: the forward in autocast's `dtype`, loss, backward, clipping at 0.1 and AdamW."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=fused)

    def step() -> None:
        network.train()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = forward()
        loss = F.mse_loss(outputs["feature_rec"], outputs["feature_align"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    return step


PLAIN_RUNS: dict[str, Callable[[], object]] = {}  # by task, in the plain reference's process


def start_plain(batch: int, threads: int) -> None:
    """Prepare the plain reference's process."""
    torch.set_num_threads(threads)
    network, images = PlainNetwork(), torch.randn(batch, 3, SIDE, SIDE)
    PLAIN_RUNS["training step"] = training_step(network, lambda: network(images), torch.float32, fused=False)
    PLAIN_RUNS["inference"] = lambda: infer_plain(network, images)


def plain_seconds(task: str) -> float:
    return seconds_of(PLAIN_RUNS[task])


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def infer(network: Network, images: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return network.eval()({"image": images})


@torch.no_grad()
def infer_plain(network: PlainNetwork, images: Tensor) -> dict[str, Tensor]:
    return network.eval()(images)


def map_difference(ours: Network, plain: PlainNetwork, images: Tensor, dtype: torch.dtype) -> float:
    """The largest difference between the two models' anomaly maps, as a part of the maps' range."""
    expected, given = infer_plain(plain, images)["pred"], infer(ours, images, dtype)["pred"]
    return ((given - expected).abs().max() / (expected.max() - expected.min())).item()


def matrix_product_gflops(dtype: torch.dtype, repeats: int = 5) -> float:
    """GFLOP/s (10⁹ multiplications and additions a second) of a product of two large square matrices."""
    left, right = torch.randn(2, MATRIX, MATRIX).to(dtype)
    out = torch.empty_like(left)
    seconds = median(seconds_of(lambda: torch.mm(left, right, out=out)) for _ in range(repeats))
    return 2 * MATRIX**3 / seconds / 1e9


@torch.no_grad()
def count_multiply_adds(network: Network, images: Tensor, features: Tensor, task: str) -> float:
    """Multiply-adds in the matrix products and convolutions of one batch."""
    with FlopCounterMode(display=False) as counter:
        if task == "training step":
            with torch.enable_grad():
                network.train().reconstruction({"feature_align": features})["feature_rec"].sum().backward()
            network.zero_grad(set_to_none=True)
        else:
            network.train()({"image": images})  # training's forward: its attention is made of products that are counted
    return counter.get_total_flops() / 2


def interleaved_medians(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each timer says, after a warm-up; they take turns, so a change of the machine's pace meets all."""
    for timer in timers.values():
        timer()
    times = [{name: timer() for name, timer in timers.items()} for _ in range(rounds)]
    return {name: median(round_[name] for round_ in times) for name in timers}


def operator_shares(run: Callable[[], object], most: int = 10) -> dict[str, float]:
    """The operators that a run spends most time in, by their share of it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key.removeprefix("aten::"): event.self_cpu_time_total / total for event in events[:most]}
