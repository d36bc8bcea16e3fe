"""Runs of train_val.py in forks of the test process: they need not import torch again, and tests can kill them."""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.helpers import tiny

TIMEOUT = 60  # seconds to wait for a process's output or end before the test fails


class Forked:
    """One process of a run; `output` holds what it prints."""

    def __init__(self, path: Path, args: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
        self.output = output
        output.write_bytes(b"")  # an earlier run's output
        self.process: BaseProcess = multiprocessing.get_context("fork").Process(
            target=run, args=(path, args, environment, output)
        )
        self.process.start()

    def wait_for(self, text: str) -> None:
        """Wait until the process has printed the text; fail if it ends first."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.log_text():
            assert self.process.is_alive(), self.log_text()
            assert time.monotonic() < deadline, self.log_text()
            time.sleep(0.002)

    def log_text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def code(self) -> int:
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, self.log_text()
        return self.process.exitcode


@contextlib.contextmanager
def fork(path: Path, *args: str, processes: int = 1, folder: Path | None = None) -> Iterator[list[Forked]]:
    """Start `train_val.py --config path *args` in several processes; all are killed at the end.

    Their output goes to `folder`, by default beside the configuration.
    """
    address = {}
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in range(processes):
        place = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if address else {}
        ranks.append(Forked(path, args, place, (folder or path.parent) / f"output-{rank}"))
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.join()


def run(path: Path, args: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
    """The child's work."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(stream, "w"), "utf-8", line_buffering=True) for stream in (1, 2))
    os.environ.clear()
    os.environ.update({**tiny.environment(), **environment})
    sys.argv = [str(tiny.TRAIN_VAL), "--config", str(path), *args]
    runpy.run_path(str(tiny.TRAIN_VAL), run_name="__main__")
