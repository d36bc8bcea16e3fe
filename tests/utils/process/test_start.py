"""How processes find out what they are, meet, and end when one of them is lost. Run as a program, this file is one of them."""

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

import pytest

from tests.helpers import tiny
from tests.helpers.project_copy import make_program
from utils.errors import UserError
from utils.process.cli import run
from utils.process.distributed import Process, average, choose_gpu, start_process, stop_process
from utils.process.rendezvous import meet, notice_ports, read_notice, show_notice

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


# --- the place to meet ---


@pytest.fixture
def started_by_hand(monkeypatch: pytest.MonkeyPatch) -> int:
    """The environment of a process that was told its rank, and a free port to meet at; gives the port."""
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
        meet(0, 3, None, SHORTLY)


def test_the_error_names_the_address_at_which_rank_0_is_not_found(started_by_hand: int) -> None:
    with pytest.raises(UserError, match=f"rank 0 is not found at localhost, port {started_by_hand}: see MASTER_ADDR"):
        meet(1, 3, None, SHORTLY)


def test_a_master_port_that_is_busy_is_an_error(started_by_hand: int) -> None:
    error = f"port {started_by_hand} is busy here: set MASTER_PORT to a free one"
    with socket.create_server(("", started_by_hand)), pytest.raises(UserError, match=error):
        meet(0, 3, None, SHORTLY)


@pytest.mark.parametrize("port", ["", "none", "0", "65536", "-1"])
def test_a_master_port_that_is_none_is_an_error(started_by_hand: int, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match=f"MASTER_PORT '{port}' is no port: it is a number from 1 to 65535"):
        meet(0, 3, None, SHORTLY)


def test_jobs_and_steps_of_slurm_start_at_other_ports_and_keep_within_a_range() -> None:
    def ports(job: int, step: int, port: int | None = None) -> list[int]:
        return notice_ports({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}, port)

    assert ports(3, 0, 40000)[:2] == [40003, 40004]
    assert len({ports(7, 0)[0], ports(7, 1)[0], ports(9, 0)[0]}) == 3
    assert ports(9_999, 0, 55535)[:2] == [65534, 55535]  # the largest that the configuration may name
    assert ports(5, 4294967290)  # the number that Slurm gives an interactive step


def test_a_notice_is_found_behind_a_silent_stranger_and_another_runs_notice(capsys: pytest.CaptureFixture) -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("", 0)))
        taken = silent.getsockname()[1]
        other, own = free_port(), free_port()
        read = threading.Event()
        end = time.monotonic() + SECONDS
        for ports, notice in (([other], "8.0 1111\n"), ([taken, own], "7.0 2222\n")):
            thread = threading.Thread(target=show_notice, args=(ports, notice, read.is_set, end))
            thread.start()
            stack.callback(thread.join)
        stack.callback(read.set)
        assert read_notice("localhost", [taken, other, own], "7.0", end) == 2222
    assert capsys.readouterr().err == f"port {taken} is busy, so the processes meet at port {own}\n"


def test_without_a_free_port_or_a_notice_the_error_names_the_ports() -> None:
    with socket.create_server(("", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(UserError, match=f"ports {port} to {port} are busy here: set port in the configuration"):
            show_notice([port], "7.0 1111\n", lambda: True, time.monotonic() + 1)
        with pytest.raises(UserError, match=f"rank 0 is not found at localhost, ports {port} to {port}"):
            read_notice("localhost", [port], "7.0", time.monotonic() + 1)


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


# --- torchrun.py: how the processes end decides how it ends ---

TORCHRUN = [sys.executable, str(tiny.ROOT / "experiments" / "torchrun.py"), "--standalone", "--nproc_per_node=2", "--no-python"]
SAVING = """#!/bin/sh
trap 'exit 75' TERM USR1
echo begun
while :; do sleep 0.1; done
"""
FAILING = """#!/bin/sh
[ "$RANK" = 0 ] || exit 3
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_all_processes_and_the_exit_code_is_that_of_an_interrupted_training(tmp_path, number: int) -> None:
    program = make_program(tmp_path / "program", SAVING)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*TORCHRUN, program], env=tiny.environment(), text=True, **pipes) as launcher:
        assert [launcher.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        launcher.send_signal(number)
        assert launcher.wait(SECONDS) == 75


def test_the_exit_code_is_that_of_the_process_that_failed_first(tmp_path) -> None:
    program = make_program(tmp_path / "program", FAILING)
    failed = subprocess.run([*TORCHRUN, program], env=tiny.environment(), timeout=SECONDS, capture_output=True, text=True)
    assert failed.returncode == 3
    assert "Traceback" not in failed.stderr


if __name__ == "__main__":
    run(main)
