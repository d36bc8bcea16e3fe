"""train.sh and eval.sh, and the scripts with a job a class, on a real Slurm, which these tests start and stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.project_copy import copy_project, make_program, sh
from tests.slurm_cluster import Cluster, SlurmUnavailable, ask, slurm_cluster

# What makes tiny's configuration that of a vis decoder.
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
# A PYTHON whose tools never end: three classes, and whoever is started for one says so.
ENDLESS = """#!/bin/sh
case " $* " in
    *" --list_classes "*) printf '%s\\n' one 'number two' three ;;
    *) echo begun; sleep 300 ;;
esac
"""


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

    evaluated = sh(experiment / "eval.sh", "1", cluster.partition, cwd=tmp_path, **cluster.environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "1 process" in evaluated.stdout
    assert (experiment / "result" / "metrics.json").is_file()


def test_tasks_on_two_nodes_train_together(cluster, experiment, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "rank $SLURM_PROCID on $SLURMD_NODENAME"\nexec "$REAL_PYTHON" "$@"\n')
    python.chmod(0o755)
    settings = {"PYTHON": str(python), "REAL_PYTHON": sys.executable, "NODES": "2", **cluster.environment}
    trained = sh(experiment / "train.sh", "2", cluster.partition, "saver.save_dir=two_nodes", cwd=tmp_path, **settings)
    assert trained.returncode == 0, trained.stderr
    assert {"rank 0 on n1", "rank 1 on n2"} <= set(trained.stdout.splitlines())
    assert "2 processes" in trained.stdout
    assert (experiment / "two_nodes" / "ckpt.pth.tar").is_file()


def test_the_exit_code_and_the_line_of_a_failed_task_come_back(cluster, experiment, tmp_path):
    failed = sh(experiment / "eval.sh", "1", cluster.partition, "trainer.max_epok=1", cwd=tmp_path, **cluster.environment)
    assert failed.returncode == 2
    assert "trainer.max_epok is not a key" in failed.stderr


def test_an_unknown_partition_is_refused_in_slurms_words(cluster, experiment, tmp_path):
    refused = sh(experiment / "train.sh", "1", "nowhere", cwd=tmp_path, **cluster.environment)
    assert refused.returncode != 0
    assert "invalid partition specified: nowhere" in refused.stderr


# --- a job a class ---


@pytest.fixture
def decoders(experiment) -> Path:
    """experiments/train_vis_decoder with the classes "tea cup" and "Fliese", and with "ghost", whose image does not exist."""
    folder = experiment.parent / "train_vis_decoder"
    tiny.make(folder)
    data = folder / "data"
    records = [json.loads(line) for line in (data / "train.json").read_text().splitlines()]
    names = {"cup": "tea cup", "tile": "Fliese"}
    records = [{**record, "clsname": names[record["clsname"]]} for record in records]
    records.append({**records[0], "clsname": "ghost", "filename": "no/such/image.png"})
    (data / "train.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    data_set = tiny.CONFIG.split("criterion:")[0].replace("data/test.json", "data/train.json")
    (folder / "config.yaml").write_text(data_set + DECODER)
    return folder


def test_the_decoders_of_all_classes_train_at_once_and_one_that_fails_stops_no_other(cluster, decoders, tmp_path):
    trained = sh(decoders / "train.sh", "2", cluster.partition, cwd=tmp_path, **cluster.environment)
    assert trained.returncode in (2, 143), trained.stderr  # 143: its second task was ended before it could fail as well
    assert trained.stderr.splitlines()[-1] == "error: failed for ghost"
    assert "no/such/image.png" in trained.stderr
    for clsname in ("Fliese", "tea cup"):
        assert f"{clsname}: done" in trained.stdout.splitlines()
        assert "2 processes" in (decoders / "log" / f"slurm_{clsname}.log").read_text()
        assert (decoders / clsname / "checkpoints" / "ckpt.pth.tar").is_file()


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
    script = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
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
