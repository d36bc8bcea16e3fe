"""Runs on the tiny data in processes that tests can signal and kill, and readers of their checkpoints and curves."""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.helpers import tiny
from utils.process.checkpoint import LAST, load_checkpoint

EPOCHS, STEPS = 4, 10  # of the tiny data set's 10 images, one a step in one process
TIMEOUT = 120  # seconds to wait for a process's output or end before the test fails
RUN = (
    f"trainer.max_epoch={EPOCHS}",
    "trainer.val_freq_epoch=2",
    "trainer.print_freq_step=1",
    "trainer.tb_freq_step=1",
    "dataset.batch_size=1",
    "dataset.train.hflip=True",  # so training reads images, and augments them differently every epoch
    "saver.auto_resume=True",
)
# Processes are forked from a server that has imported torch once and has computed nothing. A fork of the test process itself
# may hang: it has none of its parent's threads, and the locks they held.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision", "cv2", "sklearn.metrics", "tensorboardX", "pydantic"])


class Rank:
    """One process of a run, the leader of its own process group; `output` holds what it prints."""

    def __init__(self, script: Path, args: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
        self.output = output
        output.write_bytes(b"")  # an earlier run's output
        self.process = SERVER.Process(target=_run, args=(script, args, environment, output))
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

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def code(self) -> int:
        """The exit code; minus the signal's number if one ended the process."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, self.log_text()
        return self.process.exitcode


@contextlib.contextmanager
def start(
    path: Path, *args: str, processes: int = 1, script: Path = tiny.TRAIN_VAL, folder: Path | None = None
) -> Iterator[list[Rank]]:
    """Start `script --config path *args` in several processes, with the environment a launcher sets; all are killed at the end.

    Their output goes to `folder`, by default beside the configuration.
    """
    address = {}
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in range(processes):
        place = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if address else {}
        arguments = ("--config", str(path), *args)
        ranks.append(Rank(script, arguments, {**tiny.environment(), **place}, (folder or path.parent) / f"output-{rank}"))
    try:
        yield ranks
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)  # with its loaders
            rank.process.kill()
            rank.process.join()


def _run(script: Path, args: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
    """The child's work: what `python script *args` does, from the folder /."""
    os.setsid()
    os.chdir("/")
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a shell starts
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(stream, "w"), "utf-8", line_buffering=True) for stream in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name="__main__")


def result(path: Path, name: str = LAST) -> dict[str, Any]:
    """A checkpoint's content without its configuration, because folders differ."""
    content = load_checkpoint(path.parent / "checkpoints" / name)
    del content["config"]
    return content


def curve(path: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) as TensorBoard shows them: files in order; a session's start hides earlier points from its step on."""
    points: list[tuple[int, float]] = []
    for file in sorted((path.parent / "log/tensorboard").iterdir(), key=lambda file: (file.stat().st_mtime_ns, file.name)):
        for event in events(file):
            if event.session_log.status == SessionLog.START:
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return points


def events(file: Path) -> Iterator[Event]:
    """A record is 8 bytes of length, 4 of checksum, the content, and 4 of checksum; the last one may be incomplete."""
    data, place = file.read_bytes(), 0
    while len(data) >= place + 12:
        (length,) = struct.unpack_from("<Q", data, place)
        if len(data) < place + 16 + length:
            return
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length
