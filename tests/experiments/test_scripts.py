"""The scripts of the experiments, called as a user calls them: sh train_torch.sh 2 cpu."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.project_copy import SCRIPTS, TELLER, VIS_SCRIPTS, copy_project, make_program, sh
from tests.helpers.tiny import ROOT

CONFIGS = (ROOT / "experiments").rglob("config.yaml")
EXPERIMENTS = sorted(path.parent for path in CONFIGS if path.parent.name not in VIS_SCRIPTS)
TORCH_SCRIPTS = ("train_torch.sh", "eval_torch.sh")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """A copy of the project under a path with spaces and non-ASCII letters."""
    return copy_project(tmp_path_factory.mktemp("scripts") / "a folder for Prüfung" / "project")


@pytest.fixture
def teller(tmp_path) -> str:
    """A PYTHON that prints its environment and arguments."""
    return make_program(tmp_path / "bin" / "python")


@pytest.fixture
def slurm(tmp_path):
    """The PATH of a cluster with the given GPUs: srun and sbatch print how they are called, and sbatch queues job 7."""

    def on_path(gres: str) -> str:
        make_program(tmp_path / "bin" / "srun")
        make_program(tmp_path / "bin" / "sbatch", TELLER.replace('"$@"', '"$@" >&2; echo 7'))
        make_program(tmp_path / "bin" / "sinfo", f"#!/bin/sh\necho '{gres}'\n")
        return f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    return on_path


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- runs ---


def test_two_processes_train_and_one_evaluates_from_another_folder(experiment, tmp_path):
    trained = sh(experiment / "train_torch.sh", "2", "cpu", "saver.save_dir=two", "saver.log_dir=two", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "2 processes on CPU" in trained.stdout
    assert trained.stderr == ""
    assert (experiment / "two" / "ckpt.pth.tar").is_file()

    evaluated = sh(experiment / "eval_torch.sh", "1", "cpu", "saver.load_path=two/ckpt.pth.tar", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "1 process on CPU" in evaluated.stdout
    table = re.compile(r"^clsname.*\n(.*\n)*?mean .*$", re.MULTILINE)
    assert table.search(evaluated.stdout).group() == table.search(trained.stdout).group()
    assert list(tmp_path.iterdir()) == []


def test_the_first_gpu_or_else_the_cpu_trains_in_the_experiments_own_folder(experiment):
    trained = sh("train_torch.sh", "1", "0", cwd=experiment)
    assert trained.returncode == 0, trained.stderr
    assert "1 process" in trained.stdout
    assert (experiment / "checkpoints" / "ckpt.pth.tar").is_file()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_error_is_one_line_and_exit_code_2_whatever_the_number_of_processes(experiment, tmp_path, processes):
    failed = sh(experiment / "train_torch.sh", processes, "cpu", "trainer.max_epok=1", cwd=tmp_path)
    assert failed.returncode == 2
    assert "trainer.max_epok is not a key: did you mean 'trainer.max_epoch'?" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.splitlines()) <= 2 * int(processes)


# --- arguments ---


WRONG_ARGUMENTS = [(), ("2",), ("2", "--overwrite"), ("2", "trainer.max_epoch=1"), ("none", "0"), ("0", "0"), ("-1", "0")]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", WRONG_ARGUMENTS)
def test_wrong_arguments_give_one_line_with_the_usage_and_exit_code_2(experiment, script, arguments):
    refused = sh(script, *arguments, cwd=experiment)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    assert f"usage: sh {script} NUM_" in refused.stderr


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.relative_to(ROOT / "experiments").as_posix())
def test_every_experiment_has_the_five_scripts_and_each_runs_its_own_configuration(experiment, folder, tmp_path, teller, slurm):
    root = experiment.parent.parent
    copied = root / folder.relative_to(ROOT)
    copied.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS:
        shutil.copy(folder / script, copied)
        where = "cpu" if script in TORCH_SCRIPTS else "partition"
        arguments = ["1", where, "--overwrite", "net.neck.name=my neck"]
        done = sh(copied / script, *arguments, cwd=tmp_path, PYTHON=teller, PATH=slurm("gpu:8"))
        started = [*lines(done), *done.stderr.splitlines()]
        tool = started[started.index(str(root / "tools" / "train_val.py")) :]
        assert tool[1:3] == ["--config", str(copied / "config.yaml")]
        assert tool[3:] == ["--evaluate"] * script.startswith("eval") + arguments[2:]


@pytest.mark.parametrize("gpus", ["gpu", "cuda:0", "all", ",", "0,,1"])
def test_what_is_no_gpu_id_is_refused_rather_than_hiding_every_gpu(experiment, gpus):
    refused = sh("train_torch.sh", "1", gpus, cwd=experiment)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: '{gpus}' is neither cpu nor GPU ids such as 0 or 0,1; usage: sh train_torch.sh ")
    assert len(refused.stderr.splitlines()) == 1


def test_gpu_ids_reach_the_tool_and_cpu_hides_every_gpu(experiment, teller):
    assert "gpus=1,3" in lines(sh("train_torch.sh", "2", "1,3", cwd=experiment, PYTHON=teller))
    assert "gpus=GPU-1a" in lines(sh("train_torch.sh", "1", "GPU-1a", cwd=experiment, PYTHON=teller))
    assert "gpus=" in lines(sh("train_torch.sh", "1", "cpu", cwd=experiment, PYTHON=teller, CUDA_VISIBLE_DEVICES="0"))


def test_several_processes_share_the_cores_unless_told_otherwise(experiment, teller):
    cores = len(os.sched_getaffinity(0))
    few, many, told = (
        lines(sh("train_torch.sh", str(count), "cpu", cwd=experiment, PYTHON=teller, OMP_NUM_THREADS=threads))
        for count, threads in ((2, ""), (2 * cores, ""), (2, "3"))
    )
    assert f"threads={max(cores // 2, 1)}" in few
    assert "threads=1" in many
    assert "threads=3" in told


def test_processes_meet_at_master_port_if_it_is_set_and_at_a_free_port_otherwise(experiment, tmp_path):
    tool = experiment.parent.parent / "tools" / "train_val.py"
    original = tool.read_text()
    tool.write_text('import os\nos.write(1, os.environ["MASTER_PORT"].encode() + b"\\n")\n')
    try:
        free = [lines(sh("train_torch.sh", "2", "cpu", cwd=experiment)) for _ in range(2)]
        set_by_hand = lines(sh("train_torch.sh", "2", "cpu", cwd=experiment, MASTER_PORT="31234"))
    finally:
        tool.write_text(original)
    assert all(first == second for first, second in free)  # the two processes of a run
    assert free[0] != free[1]
    assert set_by_hand == ["31234"] * 2


def test_a_master_port_that_is_busy_is_one_line_and_exit_code_2(experiment):
    with socket.create_server(("", 0)) as stranger:
        port = stranger.getsockname()[1]
        refused = sh("train_torch.sh", "2", "cpu", cwd=experiment, MASTER_PORT=str(port))
    assert refused.returncode == 2
    assert refused.stderr == f"error: port {port} is busy here: set MASTER_PORT to a free one\n"


def test_the_projects_own_environment_is_used_unless_python_names_another(experiment, tmp_path, teller):
    own = experiment.parent.parent / ".venv" / "bin" / "python"
    path = f"{Path(make_program(tmp_path / 'path' / 'python3')).parent}:{os.environ['PATH']}"
    assert "program=python3" in lines(sh("train_torch.sh", "1", "cpu", cwd=experiment, PYTHON="", PATH=path))
    make_program(own, TELLER.replace("${0##*/}", "own"))
    try:
        assert "program=own" in lines(sh("train_torch.sh", "1", "cpu", cwd=experiment, PYTHON="", PATH=path))
        assert "program=python" in lines(sh("train_torch.sh", "1", "cpu", cwd=experiment, PYTHON=teller, PATH=path))
    finally:
        own.unlink()


# --- what srun is asked for; test_slurm.py runs the real one ---


def test_srun_starts_one_task_a_gpu_under_the_experiments_name(experiment, slurm):
    asked = lines(sh("train.sh", "4", "big", cwd=experiment, PATH=slurm("gpu:a100:8(S:0-1)")))
    assert asked[0] == "program=srun"
    for option in ("--partition=big", "--job-name=tiny", "--ntasks=4", "--nodes=1", "--ntasks-per-node=4", "--cpus-per-task=2"):
        assert option in asked
    assert "--gres=gpu:4" in asked
    assert "--kill-on-bad-exit=1" in asked
    assert asked.index("--gres=gpu:4") < asked.index(sys.executable)


def test_srun_is_asked_for_no_gpus_where_the_partition_has_none(experiment, slurm):
    assert not any("gres" in item for item in lines(sh("train.sh", "4", "small", cwd=experiment, PATH=slurm("(null)"))))


def test_nodes_cores_and_more_options_come_from_the_environment(experiment, slurm):
    settings = {"NODES": "2", "CPUS_PER_TASK": "5", "SRUN_ARGS": "--time=10 --qos=low", "OMP_NUM_THREADS": ""}
    asked = lines(sh("train.sh", "4", "big", cwd=experiment, PATH=slurm("gpu:8"), **settings))
    expected = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=5", "--time=10", "--qos=low")
    assert {*expected, "threads=5"} <= set(asked)


def test_where_processes_do_not_divide_evenly_slurm_spreads_them_each_with_its_gpu(experiment, slurm):
    asked = lines(sh("train.sh", "3", "big", cwd=experiment, PATH=slurm("gpu:8"), NODES="2"))
    assert {"--nodes=2", "--ntasks=3", "--gpus-per-task=1"} <= set(asked)
    assert not any(option.startswith(("--gres", "--ntasks-per-node")) for option in asked)


def test_a_training_is_queued_with_the_options_of_train_sh(experiment, slurm):
    settings = {"CPUS_PER_TASK": "5", "SRUN_ARGS": "--time=10"}
    done = sh("train_sbatch.sh", "4", "big", cwd=experiment, PATH=slurm("gpu:8"), **settings)
    assert done.stdout.splitlines() == [f"job 7 is queued, log in {experiment}/log/slurm_7.log"]
    asked = done.stderr.splitlines()
    assert asked[0] == "program=sbatch"
    expected = ("--partition=big", "--job-name=tiny", "--ntasks=4", "--ntasks-per-node=4", "--gres=gpu:4", "--cpus-per-task=5")
    assert {*expected, "--time=10", f"--output={experiment}/log/slurm_%j.log"} <= set(asked)
    assert asked.index("--time=10") < asked.index(str(experiment.parent / "train.sbatch")) < asked.index(sys.executable)


def test_what_srun_prints_is_also_kept_in_the_log_folder(experiment, tmp_path, slurm):
    path = slurm("gpu:8")
    make_program(tmp_path / "bin" / "srun", "#!/bin/sh\necho said\necho warned >&2\nexit 3\n")
    done = sh("eval.sh", "1", "big", cwd=experiment, PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "warned\n")
    assert sorted((experiment / "log" / "slurm_eval.log").read_text().split()) == ["said", "warned"]


def test_srun_runs_also_where_no_log_can_be_kept(experiment, tmp_path, slurm):
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(experiment / "eval.sh", folder)
    shutil.copy(experiment.parent / "launch.sh", folder.parent)
    (folder / "log").touch()  # where a folder should be
    done = sh("eval.sh", "1", "big", cwd=folder, PATH=slurm("gpu:8"))
    assert lines(done)[0] == "program=srun"
    assert done.stderr == ""


def test_without_slurm_one_line_names_the_script_that_needs_none(experiment, tmp_path):
    for name in ("sh", "dirname", "basename"):  # nothing else is on this PATH
        (tmp_path / name).symlink_to(f"/bin/{name}")
    refused = sh("train.sh", "1", "big", cwd=experiment, PATH=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: srun is not installed here, train.sh needs Slurm; without it use train_torch.sh"
    ]
