"""Rendezvous of distributed processes: they find the store through which PyTorch connects them."""

import os
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from utils.errors import UserError
from utils.files import write_text

TIMEOUT = timedelta(minutes=2)  # until all processes are here
DEFAULT_PORT = 29500  # torch's own


def rendezvous(rank: int, world_size: int, log_dir: str | Path, port: int | None, timeout: timedelta = TIMEOUT) -> dist.Store:
    """Wait until all processes of the run are here; returns the store that they share.

    Under torchrun the store is torchrun's, otherwise rank 0 serves it: at MASTER_ADDR and MASTER_PORT if RANK is set, else
    (Slurm) at the address that it writes to a file in `log_dir`, a shared folder. `port` is the configuration's. Raises UserError
    for a busy port, if rank 0 is not found, and for ranks that do not come.
    """
    env, deadline = os.environ, time.monotonic() + timeout.total_seconds()
    # The numbers of the job, its step and its restart: no earlier start can have left this file.
    start = (env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    file = Path(log_dir, f".rendezvous-{'.'.join(start)}")
    try:
        if dist.is_torchelastic_launched():
            store = next(torch_rendezvous("env://", timeout=timeout))[0]
        elif "RANK" in env:
            host = env.get("MASTER_ADDR", "localhost")
            store = open_store(host, master_port(port or DEFAULT_PORT), rank == 0, deadline)
        elif rank == 0:
            store = announce_store(file, port or 0, deadline)
        else:
            store = find_store(file, deadline)
        wait_for_all(store, rank, world_size, deadline)
    except dist.DistError as error:
        raise UserError(f"rank 0 ended before all processes were here ({str(error).splitlines()[0]})") from None
    finally:
        if rank == 0:
            with suppress(OSError):
                file.unlink()
    return store


def announce_store(file: Path, port: int, deadline: float) -> dist.TCPStore:
    """Open the store of a Slurm step, and write its host and port to `file`. A busy `port` is replaced by a free one."""
    host = os.environ.get("MASTER_ADDR", os.environ["SLURMD_NODENAME"])
    try:
        store = open_store(host, master_port(port), True, deadline)
    except UserError:
        if "MASTER_PORT" in os.environ or not port:
            raise
        print(f"port {port} is busy, so the processes meet at a free one", file=sys.stderr)
        store = open_store(host, 0, True, deadline)
    write_text(file, f"{host} {store.port}\n")
    return store


def find_store(file: Path, deadline: float) -> dist.TCPStore:
    """Connect to the store whose host and port rank 0 writes to `file`."""
    while time.monotonic() < deadline:
        with suppress(OSError):
            host, port = file.read_text().split()
            return open_store(host, int(port), False, deadline)
        time.sleep(0.1)
    raise UserError(f"rank 0 is not found: no {file}; saver.log_dir must be a folder that all machines share")


def open_store(host: str, port: int, is_master: bool, deadline: float) -> dist.TCPStore:
    """The store at this address, which the master serves; port 0 is any free one."""
    timeout = timedelta(seconds=max(deadline - time.monotonic(), 1))
    try:
        return dist.TCPStore(host, port, is_master=is_master, timeout=timeout, wait_for_workers=False)
    except dist.DistNetworkError as error:
        if is_master and "EADDRINUSE" in str(error):
            raise UserError(f"port {port} is busy here: set MASTER_PORT to a free one") from None
        raise UserError(f"rank 0 is not found at {host}, port {port}: see MASTER_ADDR and MASTER_PORT") from None


def master_port(default: int) -> int:
    """MASTER_PORT if it is set."""
    text = os.environ.get("MASTER_PORT")
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise UserError(f"MASTER_PORT '{text}' is no port: it is a number from 1 to 65535")
    return int(text)


def wait_for_all(store: dist.Store, rank: int, world_size: int, deadline: float) -> None:
    """Tell the store that this rank is here, and wait for the others; UserError naming those absent at the deadline."""
    ranks = [f"rank {number}" for number in range(world_size)]
    store.set(ranks[rank], "")
    try:
        store.wait(ranks, timedelta(seconds=max(deadline - time.monotonic(), 1)))
    except dist.DistStoreError:
        if absent := [name for name in ranks if not store.check([name])]:
            raise UserError(f"{len(absent)} of {world_size} processes did not come: {', '.join(absent)}") from None
