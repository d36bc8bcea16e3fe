"""The fault suite: what a cluster does to a run. Nothing is lost but the steps since the last checkpoint, and nothing hangs.

This file has processes that are killed; test_faults_disk.py disks, folders and damaged checkpoints; test_faults_images.py images
that vanish or are corrupt. docs/faults.md has a table of all cases with their tests.
"""

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.started_runs import RUN, STEPS, Rank, curve, result, start
from utils.process.checkpoint import BEST, LAST, PREVIOUS

SAVE = 3  # steps from one checkpoint to the next
KILLS = 10


def last_step(run: Rank) -> int:
    """Of all steps, the number of the last that the run told of."""
    epoch, step = map(int, re.findall(rf"epoch (\d+)/\d+  step (\d+)/{STEPS}  loss", run.log_text())[-1])
    return (epoch - 1) * STEPS + step


def first_step(run: Rank) -> int:
    """The number of steps behind which the run went on."""
    found = re.search(r"resumed from .* after epoch (\d+) of \d+(?: and (\d+) images of the next)?", run.log_text())
    return int(found[1]) * STEPS + int(found[2] or 0) if found else 0


def test_a_run_killed_ten_times_at_random_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, path = (tiny.make(tmp_path / name) for name in ("whole", "killed"))
    tiny.train(whole, *RUN)
    rng, told = np.random.default_rng(0), 0
    for _ in range(KILLS):
        with start(path, *RUN, f"saver.save_freq_step={SAVE}") as (run,):
            run.wait_for("  step ")
            started = first_step(run)
            assert (max(told - 1, 0) // SAVE) * SAVE <= started <= told + 1  # what was lost is behind the last checkpoint
            target = started + int(rng.integers(1, SAVE + 3))
            run.wait_for(f"epoch {(target - 1) // STEPS + 1}/4  step {(target - 1) % STEPS + 1}/{STEPS}")
            time.sleep(rng.uniform(0, 0.03))  # somewhere in a step, or while a checkpoint is written
            run.process.kill()
            assert run.code() == -signal.SIGKILL
            told = last_step(run)
    tiny.train(path, *RUN)
    assert_same(result(path), result(whole))
    assert_same(result(path, BEST), result(whole, BEST))
    assert [step for step, _ in curve(path, "loss_train")] == [step for step, _ in curve(whole, "loss_train")]
    assert {file.name for file in (path.parent / "checkpoints").iterdir()} == {LAST, PREVIOUS, BEST}


@pytest.mark.parametrize("killed", [0, 1])
def test_of_two_ranks_the_one_that_is_left_ends_with_an_error_and_the_run_can_go_on(tmp_path: Path, killed: int) -> None:
    path = tiny.make(tmp_path)
    with start(path, *RUN, "saver.save_freq_step=2", processes=2) as ranks:
        ranks[0].wait_for("epoch 2/4  step 4/5")
        ranks[killed].process.kill()
        assert ranks[killed].code() == -signal.SIGKILL
        assert ranks[1 - killed].code() == 1
        line = ranks[1 - killed].log_text().splitlines()[-1]
    assert line == f"{'error' if killed else 'error on rank 1'}: rank {killed} is gone, so this process ends too"
    with start(path, *RUN, processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
        assert re.search(r"resumed from .* after epoch 1 of 4 and \d+ images of the next", ranks[0].log_text())
