"""The processes of a run: how this one was started, and what they exchange."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import Interrupted, UserError
from utils.process.rendezvous import rendezvous

# For a silent machine; a process that ends is noticed at once. The longest wait is for the metrics of the largest class.
TIMEOUT = timedelta(minutes=10)

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One process of a run. Rank 0 writes the files and the log; `device` is where this process computes."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


SINGLE_PROCESS = Process()


def start_process(log_dir: str | Path = ".", port: int | None = None) -> Process:
    """Find out how this process was started, choose its device, and connect it to the other processes if there are any.

    `log_dir` and `port` are the configuration's; see rendezvous. Raises UserError for more processes than GPUs on a machine with
    GPUs, and if the processes do not find each other.
    """
    env, gpus_of_step = os.environ, 0
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, local_rank, world_size = int(env["RANK"]), int(env.get("LOCAL_RANK", 0)), int(env["WORLD_SIZE"])
    elif "SLURM_STEP_NUM_TASKS" in env:  # set inside an srun step only, not in the batch script around it
        rank, local_rank, world_size = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), int(env["SLURM_STEP_NUM_TASKS"])
        gpus_of_step = int(env.get("SLURM_GPUS_ON_NODE", 0))
    else:
        rank, local_rank, world_size = 0, 0, 1

    device = choose_device(local_rank, gpus_of_step)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = rendezvous(rank, world_size, log_dir, port)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    return Process(rank, local_rank, world_size, device)


def stop_process() -> None:
    """Disconnect from the other processes, at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(local_rank: int, gpus_of_step: int = 0) -> torch.device:
    """The GPU of this process, see choose_gpu; the CPU on a machine without GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpu = choose_gpu(local_rank, torch.cuda.device_count(), gpus_of_step)
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def choose_gpu(local_rank: int, visible: int, gpus_of_step: int = 0) -> int:
    """The index of this process's GPU among the visible ones: its local rank. UserError for more processes than GPUs.

    With --gpus-per-task or --gpu-bind Slurm shows each task only one of the step's GPUs on this machine: then it is that one.
    """
    if visible == 1 and local_rank < gpus_of_step:
        return 0
    if local_rank >= visible:
        raise UserError(f"process {local_rank} of this machine has no GPU: {visible} visible; start fewer processes")
    return local_rank


def describe_lost_ranks(error: RuntimeError) -> str:
    """Name the processes that ended if `error` is a failed communication; empty otherwise.

    Sending to every other process fails at once for those that ended, and needs no help from the rest.
    """
    if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return ""
    lost = []
    for rank in range(dist.get_world_size()):
        try:
            if rank != dist.get_rank():
                dist.isend(torch.zeros(1), rank)
        except RuntimeError:
            lost.append(f"rank {rank}")
    if not lost:
        return f"the other processes do not answer: {str(error).splitlines()[0]}"
    return f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} gone, so this process ends too"


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}


# --- Exchange. Every process must call these functions, in the same order. ---


def average(value: float, process: Process) -> float:
    return reduce(value, dist.ReduceOp.SUM, process) / process.world_size


def maximum(value: int, process: Process) -> int:
    return int(reduce(value, dist.ReduceOp.MAX, process))


def reduce(value: float, operation: Any, process: Process) -> float:
    """One number of all processes, combined by an operation of torch.distributed."""
    total = torch.tensor(value, dtype=torch.float64)  # on the CPU: gloo carries it, also beside nccl
    if process.world_size > 1:
        dist.all_reduce(total, operation)
    return total.item()


@torch.no_grad()
def share_weights(network: nn.Module, process: Process) -> None:
    """Give every process rank 0's weights and buffers; random ones differ between ranks."""
    if process.world_size > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def barrier(process: Process) -> None:
    if process.world_size > 1:
        dist.barrier()


def gather(value: Any, process: Process) -> list[Any] | None:
    """The values of all processes, by rank, on rank 0; None elsewhere."""
    values = gather_everywhere(value, process)
    return values if process.is_main else None


def gather_everywhere(value: Any, process: Process) -> list[Any]:
    """The values of all processes, by rank."""
    values = [value] * process.world_size
    if process.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(value: Any, process: Process) -> Any:
    """Rank 0's value."""
    values = [value]
    if process.world_size > 1:
        dist.broadcast_object_list(values)
    return values[0]


def on_main(action: Callable[[], T], process: Process) -> T:
    """Call `action` on rank 0; every process returns its result, or raises its error."""
    value, error = broadcast(attempt(action) if process.is_main else None, process)
    if error:
        raise error
    return value


def attempt(action: Callable[[], T]) -> tuple[T | None, UserError | Interrupted | OSError | None]:
    """Call `action`; returns its result and None, or None and the UserError, Interrupted or OSError that it raises."""
    try:
        return action(), None
    except (UserError, Interrupted, OSError) as error:
        return None, error
