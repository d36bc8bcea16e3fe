"""Runs of train_val.py in children of the test's own process, which need not import torch anew and can be killed."""

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

TIMEOUT = 60  # seconds after which a process that should have ended or spoken fails the test


class Forked:
    """One process of a run; `output` holds what it prints."""

    def __init__(self, path: Path, args: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
        self.output = output
        output.write_bytes(b"")  # what an earlier one said
        self.process: BaseProcess = multiprocessing.get_context("fork").Process(
            target=run, args=(path, args, environment, output)
        )
        self.process.start()

    def wait_for(self, text: str) -> None:
        """Until the process has said it; while it runs."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.said():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def code(self) -> int:
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, self.said()
        return self.process.exitcode


@contextlib.contextmanager
def fork(path: Path, *args: str, processes: int = 1, folder: Path | None = None) -> Iterator[list[Forked]]:
    """Start `train_val.py --config path *args` in `processes`, rank by rank; none is left behind.

    What they print is kept in `folder`, or else beside the configuration.
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
    """What the child does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)  # of the parent's threads a child has none
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(stream, "w"), "utf-8", line_buffering=True) for stream in (1, 2))
    os.environ.clear()
    os.environ.update({**tiny.environment(), **environment})
    sys.argv = [str(tiny.TRAIN_VAL), "--config", str(path), *args]
    runpy.run_path(str(tiny.TRAIN_VAL), run_name="__main__")
