"""How processes learn their rank, meet, and end when one of them is lost. Run as a program, this file is one of them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.project_copy import allow_ctrl_c
from utils.errors import UserError
from utils.process.cli import run
from utils.process.distributed import Process, average, choose_gpu, start_process, stop_process
from utils.process.rendezvous import announce_store, find_store, rendezvous

SECONDS = 60  # after which a process that should have ended fails the test
SHORTLY = timedelta(seconds=1)


def main() -> None:
    """Meet the others; the rank named on the command line is killed then. Prints what this process is."""
    process = start_process()
    total = average(process.rank, process) * process.world_size
    print(f"rank {process.rank} of {process.world_size}, local rank {process.local_rank}; the ranks add up to {total:.0f}")
    sys.stdout.flush()
    if process.rank == int((sys.argv[1:] or ["-1"])[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    average(1.0, process)
    stop_process()


# --- GPUs ---


def test_a_process_has_the_gpu_with_its_local_rank() -> None:
    assert [choose_gpu(rank, visible=4) for rank in range(4)] == [0, 1, 2, 3]
    assert [choose_gpu(rank, visible=4, gpus_of_step=4) for rank in range(4)] == [0, 1, 2, 3]


def test_a_slurm_task_that_sees_one_of_its_steps_gpus_has_this_one() -> None:
    assert [choose_gpu(rank, visible=1, gpus_of_step=4) for rank in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("visible", "gpus_of_step"), [(2, 0), (2, 2), (1, 2), (1, 1), (1, 0)])
def test_more_processes_than_gpus_are_an_error(visible: int, gpus_of_step: int) -> None:
    with pytest.raises(UserError, match=r"process 2 of this machine has no GPU: \d visible; start fewer processes"):
        choose_gpu(2, visible, gpus_of_step)


# --- rendezvous ---


@pytest.fixture
def started_by_hand(monkeypatch: pytest.MonkeyPatch) -> int:
    """The environment of a process that was told its rank and MASTER_PORT, a free port; returns the port."""
    for name in set(os.environ) - set(tiny.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANK", "0")
    port = free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def test_the_error_names_the_ranks_that_did_not_come(started_by_hand: int) -> None:
    with pytest.raises(UserError, match="2 of 3 processes did not come: rank 1, rank 2"):
        rendezvous(0, 3, ".", None, SHORTLY)


def test_the_error_names_the_address_at_which_rank_0_is_not_found(started_by_hand: int) -> None:
    with pytest.raises(UserError, match=f"rank 0 is not found at localhost, port {started_by_hand}: see MASTER_ADDR"):
        rendezvous(1, 3, ".", None, SHORTLY)


def test_a_master_port_that_is_busy_is_an_error(started_by_hand: int) -> None:
    error = f"port {started_by_hand} is busy here: set MASTER_PORT to a free one"
    with socket.create_server(("", started_by_hand)), pytest.raises(UserError, match=error):
        rendezvous(0, 3, ".", None, SHORTLY)


@pytest.mark.parametrize("port", ["", "none", "0", "65536", "-1"])
def test_a_master_port_that_is_none_is_an_error(started_by_hand: int, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match=f"MASTER_PORT '{port}' is no port: it is a number from 1 to 65535"):
        rendezvous(0, 3, ".", None, SHORTLY)


@pytest.fixture
def slurm_step(started_by_hand: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a task of step 0 of job 7."""
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "localhost"}.items():
        monkeypatch.setenv(name, value)


def meet(log_dir: Path, port: int | None = None, world_size: int = 2) -> list[str | bytes]:
    """What rank 1 reads from the store that rank 0 serves, in threads of this process; where one fails, its error."""
    outcome: list[str | bytes] = [""] * world_size

    def join(rank: int) -> None:
        try:
            store = rendezvous(rank, world_size, log_dir, port, timedelta(seconds=10))
            if rank == 0:
                store.set("word", "met")
            outcome[rank] = store.get("word")
            stores.append(store)
        except UserError as error:
            outcome[rank] = str(error)

    stores: list[object] = []  # the server has to outlive the others
    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return outcome


@pytest.mark.usefixtures("slurm_step")
def test_tasks_of_slurm_meet_by_a_file_that_is_gone_then(tmp_path: Path) -> None:
    assert meet(tmp_path / "log") == [b"met", b"met"]
    assert list((tmp_path / "log").iterdir()) == []


@pytest.mark.usefixtures("slurm_step")
def test_files_of_other_jobs_steps_and_restarts_mislead_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for other in ("7.0.0", "7.1.1", "8.0.1"):
        (tmp_path / f".rendezvous-{other}").write_text("localhost 1\n")
    assert meet(tmp_path) == [b"met", b"met"]


@pytest.mark.usefixtures("slurm_step")
def test_tasks_of_slurm_meet_at_the_configurations_port_or_if_it_is_busy_at_a_free_one(tmp_path: Path, capsys) -> None:
    port = free_port()
    assert meet(tmp_path, port) == [b"met", b"met"]
    assert capsys.readouterr().err == ""
    with socket.create_server(("", port)):
        assert meet(tmp_path, port) == [b"met", b"met"]
    assert capsys.readouterr().err == f"port {port} is busy, so the processes meet at a free one\n"


@pytest.mark.usefixtures("slurm_step")
def test_without_rank_0_the_error_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rank 0 is not found: no .*/\.rendezvous-7\.0\.0; saver\.log_dir must be a folder that"):
        rendezvous(1, 2, tmp_path, None, SHORTLY)


@pytest.mark.usefixtures("slurm_step")
def test_a_busy_master_port_is_an_error_for_tasks_of_slurm_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"port {port} is busy here: set MASTER_PORT to a free one"):
            rendezvous(0, 2, tmp_path, None, SHORTLY)


def test_without_a_launcher_there_is_one_process(started_by_hand: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK")
    process = start_process()
    assert process == Process(0, 0, 1, process.device)


# --- the loss of a process ---


@contextlib.contextmanager
def processes(count: int, *arguments: str) -> Iterator[list[subprocess.Popen]]:
    """This file's main in `count` processes that are told their rank; none is left behind."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    started = []
    for rank in range(count):
        env = {**tiny.environment(), **place, "RANK": str(rank), "PYTHONPATH": str(tiny.ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, __file__, *arguments], env=env, text=True, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("killed", "count"), [(0, 2), (1, 3)])
def test_each_of_the_others_names_the_lost_rank_in_one_line_and_ends(killed: int, count: int) -> None:
    with processes(count, str(killed)) as started:
        for rank, process in enumerate(started):
            _, told = process.communicate(timeout=SECONDS)
            if rank == killed:
                assert process.returncode == -signal.SIGKILL
                continue
            assert process.returncode == 1
            prefix = f"error on rank {rank}: " if rank else "error: "
            assert told.startswith(f"{prefix}rank ")
            assert f"rank {killed}" in told.removeprefix(prefix)
            assert told.endswith("gone, so this process ends too\n")
            assert len(told.splitlines()) == 1


# --- launch.py: how the processes end decides how it ends ---

LAUNCH = [sys.executable, str(tiny.ROOT / "utils" / "process" / "launch.py"), "2"]
SAVING = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: sys.exit(75))
os.write(1, b"begun\\n")
time.sleep(60)
"""
FAILING = """
import os, sys, time
if os.environ["RANK"] == "1":
    sys.exit(3)
time.sleep(60)
"""
INTERRUPTIBLE = """
import os, time
from utils.process.cli import run
def main():
    os.write(1, b"begun\\n")
    time.sleep(60)
run(main)
"""


@contextlib.contextmanager
def launched(program: Path, text: str) -> Iterator[subprocess.Popen]:
    """launch.py and two processes of this program, which have begun; none is left behind."""
    program.write_text(text)
    environment = {**tiny.environment(), "PYTHONPATH": str(tiny.ROOT)}
    foreground = {"start_new_session": True, "preexec_fn": allow_ctrl_c}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*LAUNCH, program], env=environment, text=True, **foreground, **pipes) as launcher:
        try:
            assert [launcher.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
            yield launcher
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_all_processes_and_the_exit_code_is_that_of_an_interrupted_training(tmp_path, number: int) -> None:
    with launched(tmp_path / "program.py", SAVING) as launcher:
        launcher.send_signal(number)
        assert launcher.wait(SECONDS) == 75


def test_ctrl_c_is_a_line_of_each_process_and_exit_code_130(tmp_path) -> None:
    with launched(tmp_path / "program.py", INTERRUPTIBLE) as launcher:
        os.killpg(launcher.pid, signal.SIGINT)  # as the terminal does
        assert launcher.wait(SECONDS) == 130
        assert sorted(launcher.stderr.read().splitlines()) == ["interrupted"] * 2


def test_the_exit_code_is_that_of_the_process_that_failed_first(tmp_path) -> None:
    (tmp_path / "program.py").write_text(FAILING)
    command = [*LAUNCH, str(tmp_path / "program.py")]
    failed = subprocess.run(command, env=tiny.environment(), timeout=SECONDS, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (3, "")


if __name__ == "__main__":
    run(main)


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
def test_the_processes_of_a_slurm_step_meet_at_rank_0_s_own_node(tmp_path: Path, monkeypatch, address: str | None) -> None:
    """Whatever its place among the step's nodes: here it is the first of two, the other one does not exist."""
    monkeypatch.setenv("SLURMD_NODENAME", "localhost")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost,nowhere")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    if address:
        monkeypatch.setenv("MASTER_ADDR", address)
    deadline = time.monotonic() + 60
    store = announce_store(tmp_path / "address", 0, deadline)
    assert (tmp_path / "address").read_text().split()[0] == (address or "localhost")
    store.set("rank 0", "here")
    assert find_store(tmp_path / "address", deadline).get("rank 0") == b"here"
