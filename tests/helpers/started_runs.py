"""Runs on the tiny data in processes that tests can signal and kill, and readers of their checkpoints and curves."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass
class Started:
    """A run in separate processes, by rank, each the leader of its own process group."""

    ranks: list[subprocess.Popen]
    output: Path  # rank 0's stdout and stderr

    def wait_for(self, text: str) -> None:
        """Wait until rank 0 has printed the text; fail if the run ends first."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.output.read_text():
            assert self.ranks[0].poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.005)

    def codes(self) -> list[int]:
        return [rank.wait(TIMEOUT) for rank in self.ranks]


@contextlib.contextmanager
def start(path: Path, *overrides: str, processes: int = 1, script: Path = tiny.TRAIN_VAL) -> Iterator[Started]:
    """Start a tool in several processes, with the environment a launcher sets; all are killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    output, ranks = path.parent / "output", []
    with open(output, "w") as stdout:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), **address}
            env = {**tiny.environment(), **(place if processes > 1 else {})}
            streams = {"stdout": stdout if rank == 0 else subprocess.DEVNULL, "stderr": subprocess.STDOUT}
            command = tiny.command(path, *overrides, script=script)
            ranks.append(subprocess.Popen(command, cwd="/", env=env, start_new_session=True, **streams))
    try:
        yield Started(ranks, output)
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


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
