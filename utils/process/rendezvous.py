"""How the processes of a run find each other, on one machine or several."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from utils.errors import UserError

WAIT = timedelta(minutes=2)  # from the first process to the last
DEFAULT_PORT = 29500
JOBS = 10_000  # ports that Slurm's jobs are spread over
TRIES = 20  # of them that a job may try


def meet(rank: int, world_size: int, port: int | None, wait: timedelta = WAIT) -> dist.Store:
    """Wait until all processes are here; returns the store that they share. `port` is the configuration's.

    The store is torchrun's under torchrun, else rank 0's at MASTER_ADDR and MASTER_PORT. Under Slurm without MASTER_PORT it has
    any free port, and rank 0 tells this one at a port that follows from the configuration's and the job's number.
    Raises UserError for a port that is busy, for a rank 0 that is not found, and for ranks that do not come.
    """
    env, end = os.environ, time.monotonic() + wait.total_seconds()
    here = [f"rank {number}" for number in range(world_size)]
    try:
        if dist.is_torchelastic_launched():
            store = next(rendezvous("env://", timeout=wait))[0]
        elif "RANK" not in env and "MASTER_PORT" not in env:
            store = meet_in_job(rank, here, port, end)
        else:
            store = open_store(master_host(env), master_port(env, port), rank == 0, end)
        store.set(here[rank], "")
        if not store.check(here):
            wait_for(store, here, end)
    except dist.DistError as error:
        raise UserError(f"rank 0 is gone before all processes have met ({str(error).splitlines()[0]})") from None
    return store


def wait_for(store: dist.Store, here: Sequence[str], end: float) -> None:
    """Wait until the store has the keys `here`; UserError naming those that it lacks at the time `end`."""
    try:
        store.wait(list(here), timedelta(seconds=max(end - time.monotonic(), 1)))
    except dist.DistStoreError:
        if absent := [key for key in here if not store.check([key])]:
            raise UserError(f"{len(absent)} of {len(here)} processes did not come: {', '.join(absent)}") from None


def open_store(host: str, port: int, is_master: bool, end: float) -> dist.TCPStore:
    """The store at this address, served by the process that calls itself the master; port 0 is any free one."""
    seconds = max(end - time.monotonic(), 1)
    try:
        return dist.TCPStore(host, port, is_master=is_master, timeout=timedelta(seconds=seconds), wait_for_workers=False)
    except dist.DistNetworkError as error:
        if is_master and "EADDRINUSE" in str(error):
            raise UserError(f"port {port} is busy here: set MASTER_PORT to a free one") from None
        raise UserError(f"rank 0 is not found at {host}, port {port}: see MASTER_ADDR and MASTER_PORT") from None


def master_port(env: Mapping[str, str], port: int | None) -> int:
    text = env.get("MASTER_PORT", str(port or DEFAULT_PORT))
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise UserError(f"MASTER_PORT '{text}' is no port: it is a number from 1 to 65535")
    return int(text)


def master_host(env: Mapping[str, str]) -> str:
    """MASTER_ADDR, else the first host of the Slurm step, else this one."""
    if "MASTER_ADDR" in env or "SLURM_STEP_NODELIST" not in env:
        return env.get("MASTER_ADDR", "localhost")
    nodes = env["SLURM_STEP_NODELIST"]
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"scontrol does not tell the hosts of {nodes} ({error}): set MASTER_ADDR to the first of them") from None
    return hosts.stdout.split()[0]


# --- a Slurm job, whose processes cannot know which port is free on the machine of rank 0 ---


def meet_in_job(rank: int, here: Sequence[str], port: int | None, end: float) -> dist.TCPStore:
    """The store of the job step that this process is a task of, by rank 0's notice."""
    env = os.environ
    host, ports, step = master_host(env), notice_ports(env, port), f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    if rank != 0:
        return open_store(host, read_notice(host, ports, step, end), False, end)
    store = open_store(host, 0, True, end)
    store.set(here[0], "")
    show_notice(ports, f"{step} {store.port}\n", lambda: store.check(list(here)), end)
    return store


def notice_ports(env: Mapping[str, str], port: int | None) -> list[int]:
    """The ports to try, in this order: steps of a job and jobs on a machine differ in the first."""
    number = int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])
    return [(port or DEFAULT_PORT) + (number + offset) % JOBS for offset in range(TRIES)]


def show_notice(ports: Sequence[int], notice: str, is_done: Callable[[], bool], end: float) -> None:
    """Send the notice to everyone who connects to the first free port, until it is done or the time is `end`."""
    with listen(ports) as server:
        server.settimeout(0.2)
        while not is_done() and time.monotonic() < end:
            with suppress(OSError), server.accept()[0] as connection:  # a timeout is an OSError
                connection.sendall(notice.encode())


def listen(ports: Sequence[int]) -> socket.socket:
    """A server at the first free port."""
    for port in ports:
        with suppress(OSError):
            server = socket.create_server(("", port))
            if port != ports[0]:
                print(f"port {ports[0]} is busy, so the processes meet at port {port}", file=sys.stderr)
            return server
    raise UserError(
        f"ports {ports[0]} to {ports[-1]} are busy here: set port in the configuration, or MASTER_PORT, to a free one"
    )


def read_notice(host: str, ports: Sequence[int], step: str, end: float) -> int:
    """The port on the step's notice; whoever else listens at one of the ports is passed over."""
    while time.monotonic() < end:
        for port in ports:
            with suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
                words = connection.makefile(encoding="ascii", errors="replace").readline(100).split()
                if words[:1] == [step]:
                    return int(words[1])
        time.sleep(0.1)
    raise UserError(f"rank 0 is not found at {host}, ports {ports[0]} to {ports[-1]}: see MASTER_ADDR")
