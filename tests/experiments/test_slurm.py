"""train.sh, eval.sh, train_sbatch.sh and the scripts with a job per class, on a real Slurm that these tests start and stop."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.held_images import HeldImage
from tests.helpers.project_copy import allow_ctrl_c, copy_project, make_program, sh
from tests.helpers.slurm_cluster import Cluster, SlurmUnavailable, ask, slurm_cluster
from utils.process.checkpoint import load_checkpoint
from utils.process.distributed import choose_gpu

# Turns tiny's configuration into that of a vis decoder.
DECODER = """
criterion:
  - {name: ImageMSELoss, type: ImageMSELoss, kwargs: {weight: 1.0}}
trainer:
  max_epoch: 1
  lr_scheduler: {kwargs: {step_size: 2, gamma: 0.1}}
  optimizer: {type: SGD, kwargs: {lr: 0.001}}
saver: {save_dir: checkpoints, log_dir: log, always_save: False}
visualization: {vis_freq_epoch: 1, vis_dir: vis}
frozen_layers: [backbone]
net:
  - {name: backbone, type: models.backbones.efficientnet_lite0, kwargs: {pretrained: False, outlayers: [1]}}
  - {name: neck, type: models.necks.MFCN, kwargs: {outstrides: [32]}}
  - {name: reconstruction, type: models.reconstructions.VisDecoder, kwargs: {block_type: basic}}
"""
# A PYTHON whose tools never end; it lists three classes.
ENDLESS = """#!/bin/sh
case " $* " in
    *" --list_classes "*) printf '%s\\n' one 'number two' three ;;
    *) echo begun; sleep 300 ;;
esac
"""
# A PYTHON that runs the process of test_start.py in place of the tool.
MEMBER = """#!/bin/sh
exec "$REAL_PYTHON" "$MEMBER"
"""
# A PYTHON of which one task fails and the others end as trainings do, with 1, when Slurm terminates them. It fails as slowly as
# Python: Slurm ends no task that it has not started yet, and may lose last words.
ONE_FAILS = """#!/bin/sh
trap 'exit 1' TERM
while [ "$SLURM_PROCID" != 1 ]; do sleep 0.1; done
echo "error: why" >&2
sleep 2
exit 3
"""
# A PYTHON that runs until it is asked to stop, and succeeds when it is started again.
STOPPABLE = """#!/bin/sh
echo "arguments of task $SLURM_PROCID: $*"
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
trap 'exit 75' TERM USR1
echo begun
while :; do sleep 0.1; done
"""
# Runs a tool that says when it notes a signal.
TELLS_OF_SIGNALS = """
import os, runpy, sys
from utils.process.signals import StopSignals

enter, note = StopSignals.__enter__, StopSignals._note

def listen(self):
    signals = enter(self)
    os.write(1, f"task {os.environ['SLURM_PROCID']} listens to signals\\n".encode())
    return signals

def tell(self, number, frame):
    note(self, number, frame)
    os.write(1, f"noted signal {number}\\n".encode())

StopSignals.__enter__, StopSignals._note = listen, tell
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Job:
    """A queued job."""

    cluster: Cluster
    number: str
    log: Path

    def shown(self, name: str) -> str:
        """What scontrol shows under this name; empty if it shows nothing."""
        shown = ask(self.cluster, "scontrol", "--oneliner", "show", "job", self.number)
        return dict(item.split("=", 1) for item in shown.split() if "=" in item).get(name, "")

    def wait_for_state(self, state: str) -> None:
        wait_until(lambda: self.shown("JobState") == state, self.log)

    def wait_for_line(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.log.exists() and self.log.read_text().count(text) >= count, self.log)

    def restart(self) -> None:
        """Wait until it is queued again, and start it: Slurm would hold such a job for two minutes."""
        self.wait_for_state("PENDING")

        def has_started() -> bool:
            """A job that still ends gets its delay only then, so it is started until it runs."""
            if self.shown("JobState") == "PENDING":
                ask(self.cluster, "scontrol", "update", f"JobId={self.number}", "StartTime=now")
            return self.shown("JobState") in ("RUNNING", "COMPLETED")  # COMPLETING is still the first start

        wait_until(has_started, self.log)


def wait_until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes that pretend to have eight GPUs each."""
    try:
        with slurm_cluster() as running:
            yield running
    except SlurmUnavailable as reason:
        pytest.skip(f"no Slurm: {reason}")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("slurm") / "a project")


def test_two_tasks_train_and_one_evaluates(cluster, experiment, tmp_path):
    trained = sh(experiment / "train.sh", "2", cluster.partition, cwd=tmp_path, **cluster.environment)
    assert trained.returncode == 0, trained.stderr
    assert "2 processes" in trained.stdout
    assert (experiment / "checkpoints" / "ckpt.pth.tar").is_file()
    assert "2 processes" in (experiment / "log" / "slurm_train.log").read_text()

    evaluated = sh(experiment / "eval.sh", "1", cluster.partition, cwd=tmp_path, **cluster.environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "1 process" in evaluated.stdout
    assert (experiment / "result" / "metrics.json").is_file()


def test_four_tasks_on_two_nodes_train_together(cluster, experiment, tmp_path):
    program = '#!/bin/sh\necho "rank $SLURM_PROCID on $SLURMD_NODENAME"\nexec "$REAL_PYTHON" "$@"\n'
    settings = {"PYTHON": make_program(tmp_path / "python", program), "REAL_PYTHON": sys.executable, "NODES": "2"}
    overrides = ("saver.save_dir=two_nodes", "dataset.batch_size=1")
    trained = sh(experiment / "train.sh", "4", cluster.partition, *overrides, cwd=tmp_path, **settings, **cluster.environment)
    assert trained.returncode == 0, trained.stderr
    assert {f"rank {rank} on n{1 + rank // 2}" for rank in range(4)} <= set(trained.stdout.splitlines())
    assert "4 processes" in trained.stdout
    assert (experiment / "two_nodes" / "ckpt.pth.tar").is_file()


def test_three_tasks_on_two_nodes_meet(cluster, experiment, tmp_path):
    member = {"REAL_PYTHON": sys.executable, "MEMBER": str(tiny.ROOT / "tests/utils/process/test_start.py")}
    settings = {"PYTHON": make_program(tmp_path / "python", MEMBER), "PYTHONPATH": str(tiny.ROOT), "NODES": "2", **member}
    settings |= cluster.environment
    met = sh(experiment / "train.sh", "3", cluster.partition, cwd=tmp_path, **settings)
    assert met.returncode == 0, met.stderr
    places = sorted(re.findall(r"rank (\d) of 3, local rank (\d); the ranks add up to 3", met.stdout))
    assert [rank for rank, _ in places] == ["0", "1", "2"]
    assert sorted(local for _, local in places) == ["0", "0", "1"]
    assert list(tmp_path.glob(".rendezvous*")) == []  # in the process's log folder, here the current one


def test_tasks_that_see_one_gpu_each_have_this_one(cluster, experiment, tmp_path):
    told = '#!/bin/sh\necho "$SLURM_LOCALID:$CUDA_VISIBLE_DEVICES:$SLURM_GPUS_ON_NODE"\n'
    settings = {"PYTHON": make_program(tmp_path / "python", told), "SRUN_ARGS": "--gpu-bind=single:1", **cluster.environment}
    done = sh(experiment / "train.sh", "2", cluster.partition, cwd=tmp_path, **settings)
    tasks = sorted(line.split(":") for line in done.stdout.splitlines())
    assert [ids for _, ids, _ in tasks] == ["0", "1"]
    assert [choose_gpu(int(rank), len(ids.split(",")), int(gpus)) for rank, ids, gpus in tasks] == [0, 0]


@pytest.mark.parametrize("tasks", ["1", "2"])
def test_the_exit_code_and_the_line_of_a_failed_task_come_back(cluster, experiment, tmp_path, tasks):
    failed = sh(experiment / "eval.sh", tasks, cluster.partition, "trainer.max_epok=1", cwd=tmp_path, **cluster.environment)
    assert failed.returncode == 2
    assert "trainer.max_epok is not a key" in failed.stderr


def test_a_failed_task_ends_the_others_and_the_exit_code_is_its_own(cluster, experiment, tmp_path):
    settings = {"PYTHON": make_program(tmp_path / "python", ONE_FAILS), "NODES": "2", **cluster.environment}
    failed = sh(experiment / "train.sh", "2", cluster.partition, cwd=tmp_path, **settings)
    assert failed.returncode == 3
    assert "error: why" in failed.stderr.splitlines()


# After Ctrl-C srun ends with 130, or with 137 if it first learns that the tasks were killed.
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGUSR1, {75}), (signal.SIGINT, {130, 137})])
def test_sigusr1_to_the_script_lets_the_tasks_save_and_ctrl_c_ends_them(cluster, experiment, tmp_path, number, codes):
    environment = {**tiny.environment(), **cluster.environment, "PYTHON": make_program(tmp_path / "python", STOPPABLE)}
    command = ["sh", experiment / "train.sh", "2", cluster.partition]
    options = {"stdout": subprocess.PIPE, "text": True, "preexec_fn": allow_ctrl_c}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **options) as script:
        for _ in range(2):
            assert "begun\n" in script.stdout  # reads on until a task says so
        script.send_signal(number)
        assert script.wait(timeout=60) in codes


def test_an_unknown_partition_is_refused_in_slurms_words(cluster, experiment, tmp_path):
    for script in ("train.sh", "train_sbatch.sh"):
        refused = sh(experiment / script, "1", "nowhere", cwd=tmp_path, **cluster.environment)
        assert refused.returncode != 0
        assert "invalid partition specified: nowhere" in refused.stderr
        assert refused.stdout == ""


# --- queued jobs ---


@pytest.fixture
def queue(cluster, experiment, tmp_path) -> Callable[..., Job]:
    """Queue `train_sbatch.sh 2 partition ...`; returns the job."""

    def submit(*arguments: str, **settings: str) -> Job:
        settings = {**cluster.environment, **settings}
        queued = sh(experiment / "train_sbatch.sh", "2", cluster.partition, *arguments, cwd=tmp_path, **settings)
        assert queued.returncode == 0, queued.stderr
        number, log = re.fullmatch(r"job (\d+) is queued, log in (.*)\n", queued.stdout).groups()
        return Job(cluster, number, Path(log))

    return submit


@pytest.mark.parametrize("stop", [("scancel", "--signal=USR1"), ("scancel", "--signal=TERM"), ("scontrol", "requeue")])
def test_a_queued_job_that_is_stopped_is_queued_again_and_goes_on(queue, tmp_path, stop):
    job = queue("--overwrite", "random_seed=3", PYTHON=make_program(tmp_path / "python", STOPPABLE))
    job.wait_for_line("begun", 2)
    ask(job.cluster, *stop, job.number)
    job.restart()
    job.wait_for_state("COMPLETED")
    assert job.shown("Restarts") == "1"
    first, again = re.findall(r"arguments of task 0: .*/config.yaml (.*)", job.log.read_text())
    assert first == "--overwrite random_seed=3"
    assert again == f"{first} --no-overwrite saver.auto_resume=True"  # keeps what the first start wrote


def test_a_queued_job_that_is_cancelled_is_not_queued_again(queue, tmp_path):
    job = queue(PYTHON=make_program(tmp_path / "python", STOPPABLE))
    job.wait_for_line("begun", 2)
    ask(job.cluster, "scancel", job.number)
    job.wait_for_state("CANCELLED")
    assert job.shown("Restarts") == "0"


def test_the_exit_code_of_a_queued_job_is_that_of_the_task_that_failed(queue, tmp_path):
    job = queue(PYTHON=make_program(tmp_path / "python", ONE_FAILS))
    job.wait_for_state("FAILED")
    assert (job.shown("ExitCode"), job.shown("Restarts")) == ("3:0", "0")


@pytest.mark.parametrize("kind", tiny.RECONSTRUCTIONS)
def test_a_training_that_slurm_requeues_ends_with_the_whole_result(queue, experiment, tmp_path, kind):
    folder, fills = f"queued {kind}", kind == "Memory"
    options = (*tiny.RECONSTRUCTIONS[kind], "trainer.max_epoch=30", "trainer.val_freq_epoch=1000", f"saver.save_dir={folder}")
    python = {"REAL_PYTHON": sys.executable, "PYTHONPATH": str(tiny.ROOT), "TELLING": str(tmp_path / "telling.py")}
    (tmp_path / "telling.py").write_text(TELLS_OF_SIGNALS)
    program = make_program(tmp_path / "python", '#!/bin/sh\nexec "$REAL_PYTHON" "$TELLING" "$@"\n')
    image = HeldImage(experiment / "data/cup/train/good/000.png") if fills else None  # the pass over ten images is too quick
    job = queue("--overwrite", *options, PYTHON=program, **python)
    if fills:
        image.wait_for_reader()
        job.wait_for_line("task 0 listens to signals")
        job.wait_for_line("task 1 listens to signals")
    else:
        job.wait_for_line("epoch 3/30")
    ask(job.cluster, "scontrol", "requeue", job.number)
    if fills:
        job.wait_for_line("noted signal 15")  # by task 0; the other may wait for it, and note it later
        image.release()
    job.restart()
    job.wait_for_state("COMPLETED")
    log = job.log.read_text()
    if fills:
        stopped, filled = log.index("SIGTERM: stopped "), log.index("memory: 100 tokens of cup, 100 tokens of tile")
        assert stopped < filled
    else:
        stopped = re.search(r"SIGTERM: stopped at epoch (\d+) ", log)
        resumed = re.search(rf"resumed from .*/{folder}/ckpt.pth.tar after epoch (\d+) of 30", log)
        assert stopped.end() < resumed.start()
        assert int(resumed.group(1)) == int(stopped.group(1)) - 1  # the epoch at which it stopped is the next one
        assert "epoch 30/30" in log
    content = load_checkpoint(experiment / folder / "ckpt.pth.tar")
    assert content["epoch"] == len(content["history"]) == (1 if fills else 30)
    assert "mean_pixel_auc" in content["history"][-1]


# --- a job per class ---


@pytest.fixture
def decoders(experiment) -> Path:
    """experiments/train_vis_decoder with the class "tea cup", and with "ghost", whose image does not exist."""
    folder = experiment.parent / "train_vis_decoder"
    tiny.make(folder)
    data = folder / "data"
    records = [json.loads(line) for line in (data / "train.json").read_text().splitlines()]
    records = [{**record, "clsname": "tea cup"} for record in records if record["clsname"] == "cup"]
    records.append({**records[0], "clsname": "ghost", "filename": "no/such/image.png"})
    (data / "train.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    data_set = tiny.CONFIG.split("criterion:")[0].replace("data/test.json", "data/train.json")
    (folder / "config.yaml").write_text(data_set + DECODER)
    return folder


def test_the_decoders_of_all_classes_train_at_once_and_one_that_fails_stops_no_other(cluster, decoders, tmp_path):
    trained = sh(decoders / "train.sh", "2", cluster.partition, cwd=tmp_path, **cluster.environment)
    assert trained.returncode == 2, trained.stderr
    assert trained.stderr.splitlines()[-1] == "error: failed for ghost"
    assert "no/such/image.png" in trained.stderr
    assert "tea cup: done" in trained.stdout.splitlines()
    assert "2 processes" in (decoders / "log" / "slurm_tea cup.log").read_text()
    assert (decoders / "tea cup" / "checkpoints" / "ckpt.pth.tar").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_script_takes_its_jobs_along_also_those_that_still_wait(cluster, experiment, tmp_path, number):
    folder = experiment.parent / "vis_recon"
    environment = {
        **tiny.environment(),
        **cluster.environment,
        "PYTHON": make_program(tmp_path / "python", ENDLESS),
        "CPUS_PER_TASK": "64",  # a whole node of the two that there are
    }
    command = ["sh", folder / "vis_recon.sh", cluster.partition]
    foreground = {"start_new_session": True, "preexec_fn": allow_ctrl_c}
    script = subprocess.Popen(command, cwd=tmp_path, env=environment, **foreground)
    deadline = time.monotonic() + 60
    while sorted(ask(cluster, "squeue", "--noheader", "--format=%t").split()) != ["PD", "R", "R"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(script.pid, number)  # as Ctrl-C does: srun gets it too
    else:
        script.send_signal(number)
    assert script.wait(timeout=60) == 130
    while ask(cluster, "squeue", "--noheader"):
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
