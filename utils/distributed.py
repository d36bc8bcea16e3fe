"""How this process was started, which others there are, and what they tell each other."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import UserError

DEFAULT_PORT = 29500
TIMEOUT = timedelta(minutes=10)  # evaluation on rank 0 is what the others wait for longest


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


def start_process(port: int | None = None) -> Process:
    """Find out who started us (torchrun, srun or nobody), join the others and choose the device.

    `port` is the configuration's. Without a launcher there is one process, and nothing is opened. Raises UserError for more
    processes than GPUs on a machine that has some.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, local_rank, world_size = int(env["RANK"]), int(env.get("LOCAL_RANK", 0)), int(env["WORLD_SIZE"])
    elif "SLURM_STEP_NUM_TASKS" in env:  # set inside an srun step only, not in the batch script around it
        rank, local_rank, world_size = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), int(env["SLURM_STEP_NUM_TASKS"])
        if world_size > 1 and "MASTER_ADDR" not in env:
            env["MASTER_ADDR"] = first_slurm_host(env)
        env.setdefault("MASTER_PORT", str((port or DEFAULT_PORT) + int(env["SLURM_JOB_ID"]) % 10_000))
    else:
        rank, local_rank, world_size = 0, 0, 1

    device = choose_device(local_rank)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
    return Process(rank, local_rank, world_size, device)


def choose_device(local_rank: int) -> torch.device:
    """The GPU with this process's local rank, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} visible; start fewer processes"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def first_slurm_host(env: Mapping[str, str]) -> str:
    nodes = env["SLURM_STEP_NODELIST"]
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"scontrol does not tell the hosts of {nodes} ({error}): set MASTER_ADDR to the first of them") from None
    return hosts.stdout.split()[0]


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


def broadcast(value: Any, process: Process) -> Any:
    """Rank 0's value, in every process."""
    if process.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
