"""How this process was started, which others there are, and what they tell each other."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import UserError
from utils.process.rendezvous import meet

# A process that dies is noticed at once, this is for a silent machine. The metrics of the largest class are waited for longest.
TIMEOUT = timedelta(minutes=10)

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One process of a run: rank 0 writes files and the log; `device` is where it computes."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


ALONE = Process()


def start_process(port: int | None = None) -> Process:
    """Find out who started us (torchrun, srun or nobody), join the others and choose the device.

    `port` is the configuration's. Without a launcher there is one process, and nothing is opened. Raises UserError for more
    processes than GPUs on a machine that has some, and where the processes do not meet.
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
        store = meet(rank, world_size, port)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    return Process(rank, local_rank, world_size, device)


def choose_device(local_rank: int, gpus_of_step: int = 0) -> torch.device:
    """The GPU of this process, or the CPU where there is none; see choose_gpu."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpu = choose_gpu(local_rank, torch.cuda.device_count(), gpus_of_step)
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def choose_gpu(local_rank: int, visible: int, gpus_of_step: int = 0) -> int:
    """The number of this process's GPU among those it sees: its local rank.

    Slurm may show each task a GPU of its own (--gpus-per-task, --gpu-bind): the one seen, of the several that the step has on
    this machine. Raises UserError for more processes than GPUs.
    """
    if visible == 1 and local_rank < gpus_of_step:
        return 0
    if local_rank >= visible:
        raise UserError(f"process {local_rank} of this machine has no GPU: {visible} visible; start fewer processes")
    return local_rank


def describe_lost_ranks(error: RuntimeError) -> str:
    """Which processes are gone, where the error says that the others could not be spoken to; else nothing.

    The connections tell it at once, and without the others' help. For the end of a process: it sends to all the others.
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
    """The batch with its tensors on `device`."""
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}


def stop_process() -> None:
    """Leave the others, at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def average(value: float, process: Process) -> float:
    """The mean of a number over all processes; every one of them must call this."""
    if process.world_size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)  # on the CPU: gloo carries it, also beside nccl
    dist.all_reduce(total)
    return total.item() / process.world_size


def maximum(value: int, process: Process) -> int:
    """The largest of a number over all processes; every one of them must call this."""
    if process.world_size == 1:
        return value
    largest = torch.tensor(value)  # on the CPU, as in `average`
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


@torch.no_grad()
def share_weights(network: nn.Module, process: Process) -> None:
    """Give every process rank 0's weights and buffers: random ones differ with the rank. Every process must call it."""
    if process.world_size > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def barrier(process: Process) -> None:
    """Wait until every process is here."""
    if process.world_size > 1:
        dist.barrier()


def gather(value: Any, process: Process) -> list[Any] | None:
    """The values of all processes, by rank, on rank 0; None elsewhere. Every process must call this."""
    if process.world_size == 1:
        return [value]
    values = [None] * process.world_size if process.is_main else None
    dist.gather_object(value, values)
    return values


def gather_everywhere(value: Any, process: Process) -> list[Any]:
    """The values of all processes, by rank, in each of them. Every process must call this."""
    if process.world_size == 1:
        return [value]
    values = [None] * process.world_size
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any, process: Process) -> Any:
    """Rank 0's value, in every process."""
    if process.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def on_main(action: Callable[[], T], process: Process) -> T:
    """What rank 0's `action` returns, or the UserError or OSError that it raises, in every process; each must call this."""
    value, error = broadcast(attempt(action) if process.is_main else None, process)
    if error:
        raise error
    return value


def attempt(action: Callable[[], T]) -> tuple[T | None, UserError | OSError | None]:
    """What `action` returns and None, or None and the UserError or OSError that it raises."""
    try:
        return action(), None
    except (UserError, OSError) as error:
        return None, error
