"""train.sh and eval.sh on a real Slurm, which these tests start and stop."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project_copy import copy_project, sh
from tests.slurm_cluster import Cluster, SlurmUnavailable, slurm_cluster


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
