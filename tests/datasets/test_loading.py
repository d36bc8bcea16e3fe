"""Loader workers that hang, are lost or cannot be reached end a run in one line; nothing waits for ever."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets import loading
from datasets.loading import ImageLoader, SampleReader, describe_lost_worker
from tests.helpers import tiny
from tests.helpers.started_runs import start
from utils.errors import Interrupted, UserError


class Stuck(SampleReader):
    """Its second image never comes."""

    def __init__(self) -> None:
        super().__init__(["0", "1"], False, "stop")

    def __getitem__(self, index: int) -> dict[str, int]:
        if index == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)
            time.sleep(1000)
        return {"index": index}


@pytest.fixture
def loader() -> ImageLoader:
    return ImageLoader(Stuck(), batch_size=1, num_workers=1)


def test_a_worker_that_never_answers_ends_the_run_in_one_line_and_is_killed(loader, monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 2)
    batches = iter(loader)
    assert next(batches)["index"].tolist() == [0]
    with pytest.raises(UserError, match=r"no loader worker has answered for 2 seconds.*dataset\.workers=0"):
        next(batches)


def test_what_a_signal_asks_for_is_done_while_no_data_come(loader, monkeypatch):
    def leave() -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(loading, "PATIENCE", 40)
    loader.while_waiting = leave
    with pytest.raises(Interrupted, match="stopped"):
        list(loader)


def test_a_long_tmpdir_is_no_obstacle_for_workers(tmp_path):
    path = tiny.make(tmp_path / "run")
    folder = tmp_path / ("scratch_of_the_cluster_job_" * 4)
    folder.mkdir()
    command = tiny.command(path, "dataset.workers=2", "dataset.feature_cache.mode=off")
    environment = {**tiny.environment(), "TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


ONE_FAILS_ONE_HANGS = """
import multiprocessing, os, sys, time
from multiprocessing import resource_tracker
from datasets.loading import ImageLoader, SampleReader
from utils.errors import UserError
from utils.process.cli import run

class Images(SampleReader):
    def __getitem__(self, index):
        while index and not os.path.exists("hangs"):
            time.sleep(0.1)
        open("hangs", "w").close()
        time.sleep(0 if index else 1000)
        raise UserError(f"image {index} is bad")

def main():
    list(ImageLoader(Images(["0", "1"], False, "stop"), batch_size=1, num_workers=2, in_order=False))

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    resource_tracker.ensure_running()  # else it unblocks signals, and a worker that ignores the wrong parent is not noticed
    run(main)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_that_hangs_while_another_fails_does_not_keep_the_run(tmp_path: Path, method: str):
    script = tmp_path / "run.py"
    script.write_text(ONE_FAILS_ONE_HANGS)
    environment = {**tiny.environment(), "PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, script, method]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, "error: image 1 is bad\n")


ALL_HANG = """
import sys, time
from datasets import loading
from utils.process.cli import run

class Images(loading.SampleReader):
    def __getitem__(self, index):
        time.sleep(1000)

loading.PATIENCE = 1
run(lambda: list(loading.ImageLoader(Images(["0", "1"], False, "stop"), batch_size=1, num_workers=2)))
"""


def test_workers_that_are_given_up_leave_one_line_and_nothing_after_it(tmp_path: Path):
    environment = {**tiny.environment(), "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run([sys.executable, "-c", ALL_HANG], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no loader worker has answered for 1 seconds")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_killed_worker_is_one_line_with_the_cure(tmp_path):
    path = tiny.make(tmp_path)
    options = ("dataset.workers=1", "trainer.max_epoch=500", "dataset.batch_size=1", "dataset.train.hflip=True")
    with start(path, *options) as (run,):
        run.wait_for("step 10/10")
        deadline = time.monotonic() + 60
        while run.process.is_alive() and time.monotonic() < deadline:
            for child in subprocess.run(["pgrep", "-P", str(run.process.pid)], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            time.sleep(0.1)
        assert run.code() == 2
    assert "Traceback" not in run.log_text()
    assert "--shm-size" in run.log_text()
    assert "dataset.workers=0" in run.log_text()


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that workers are out of shared memory.",
        "unable to write to file </torch_7_1>: No space left on device (28)",
        "received 0 items of ancdata",
    ],
)
def test_want_of_shared_memory_or_files_is_one_line_and_another_error_is_none(text):
    assert len(describe_lost_worker(RuntimeError(text)).splitlines()) == 1
    assert describe_lost_worker(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_class_that_the_terminal_cannot_show_ends_no_tool(tmp_path: Path, encoding: str):
    tiny.make(tmp_path / "螺栓")
    tool = [
        sys.executable,
        str(tiny.ROOT / "tools/prepare_data.py"),
        "folder",
        "--root",
        str(tmp_path / "螺栓/data"),
        "--out",
        str(tmp_path),
    ]
    (tmp_path / "螺栓/data/cup").rename(tmp_path / "螺栓/data/杯")
    done = subprocess.run(tool, env={**tiny.environment(), "PYTHONIOENCODING": encoding}, capture_output=True)
    assert done.returncode == 0
    assert b"\\u676f" in done.stdout


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [(">&-", 0, ""), (">/dev/full", 2, "error: the output cannot be written (No space left on device)\n")],
)
def test_a_closed_or_a_full_output_gives_no_traceback(tmp_path: Path, target: str, code: int, said: str):
    tool = shlex.join([sys.executable, str(tiny.ROOT / "tools/caches.py"), str(tmp_path)])
    done = subprocess.run(f"{tool} {target}", shell=True, env=tiny.environment(), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_closed_pipe_ends_no_training_and_no_tool_with_a_traceback(tmp_path: Path):
    path = tiny.make(tmp_path)
    with subprocess.Popen(tiny.command(path), env=tiny.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        errors = run.stderr.read()
    assert (run.returncode, errors.decode()) == (0, "")
    assert (tmp_path / "checkpoints/ckpt.pth.tar").is_file()
