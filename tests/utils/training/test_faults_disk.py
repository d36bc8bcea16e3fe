"""The fault suite, see test_faults.py: full and read-only disks, odd paths, and checkpoints that are damaged anywhere."""

import csv
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from datasets.lists import lists_from_tree, write_list
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.started_runs import RUN, result, start
from utils.errors import UserError
from utils.process.checkpoint import LAST, PREVIOUS, load_checkpoint, newest_whole


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory, or mounts it again, with the given options; returns its folder."""
    folder = tmp_path / "disk"

    def call(options: str) -> Path:
        folder.mkdir(exist_ok=True)
        if os.name != "posix" or os.geteuid() != 0:
            pytest.skip("disks can be mounted by root only")
        if failed := subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).stderr:
            pytest.skip(f"no disk can be mounted here: {failed.decode().strip()}")
        return folder

    yield call
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)  # a test that failed may hold files open


def fill(folder: Path) -> Path:
    """Take all the room on a disk; returns the file that has it."""
    file = folder / "filler"
    with open(file, "wb", buffering=0) as filler:
        for size in (2**20, 2**12):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError:
                continue
    return file


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_it_goes_on_when_there_is_room(tmp_path: Path, mount) -> None:
    """Log, curves and checkpoints are on it."""
    whole, path = tiny.make(tmp_path / "whole"), tiny.make(mount("size=100m") / "experiment")
    for file in (whole.parent / "data/train.json", path.parent / "data/train.json"):
        file.write_text(10 * file.read_text())  # an epoch's log is longer than the room in a file's last page
    options = (*RUN, "trainer.max_epoch=4")
    tiny.train(whole, *options)
    with start(path, *options, folder=tmp_path) as (run,):
        run.wait_for("epoch 3/4  step 1/")
        run.send_signal(signal.SIGSTOP)  # so that what is still to be written is more than the files' last pages have room for
        filler = fill(tmp_path / "disk")
        run.send_signal(signal.SIGCONT)
        assert run.code() == 2
        lines = run.log_text().splitlines()
    last = path.parent / "checkpoints" / LAST
    assert lines[-1] == f"error: {last}: cannot be written (No space left on device)"
    assert sum(f"{path.parent}/log/train.log: cannot be written" in line for line in lines) == 1
    assert sum("TensorBoard's curves end here, they cannot be written (No space left on device)" in line for line in lines) == 1
    assert "Traceback" not in run.log_text()
    assert load_checkpoint(last)["epoch"] == 2
    assert load_checkpoint(last.with_name(PREVIOUS))["epoch"] == 1  # before the validation of epoch 2
    filler.unlink()
    with start(path, *options, folder=tmp_path) as (run,):
        assert run.code() == 0
        assert f"resumed from {last} after epoch 2 of 4" in run.log_text()
    assert_same(result(path), result(whole))


def test_a_read_only_experiment_folder_is_one_line_before_anything_is_trained(tmp_path: Path, mount, caplog) -> None:
    path = tiny.make(mount("size=100m") / "experiment")
    tiny.train(path)
    elsewhere = {name: f"{name}={tmp_path}/{name}" for name in ("saver.log_dir", "saver.save_dir", "evaluator.save_dir")}
    mount("remount,ro")
    for options in ((), ("-e",)):
        with start(path, *options, folder=tmp_path) as (run,):
            assert run.code() == 2
            (line,) = run.log_text().splitlines()
        assert line.endswith(f"{path.parent}/log: the log cannot be written there (Read-only file system); set saver.log_dir")
    caplog.set_level("INFO", "uniad")
    caplog.clear()  # a tool that ran in this process before may have left the level there
    with pytest.raises(UserError, match=r"/checkpoints: cannot be written \(Read-only file system\)"):
        tiny.train(path, "saver.auto_resume=True", "trainer.max_epoch=2")
    with pytest.raises(UserError, match=r"/(log|result): cannot be written \(Read-only file system\)"):
        tiny.train(path, elsewhere["saver.save_dir"])
    with pytest.raises(UserError, match=r"/result: cannot be written \(Read-only file system\)"):
        tiny.evaluate(path)
    assert not any("epoch" in line for line in caplog.messages)
    tiny.train(path, *elsewhere.values())
    tiny.evaluate(path, elsewhere["evaluator.save_dir"])
    assert (tmp_path / "evaluator.save_dir/report.html").is_file()


def test_paths_and_class_names_may_hold_spaces_quotes_and_letters_beyond_ascii(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "ein Ordner, 検査 'é' $HOME 100%")
    data = path.parent / "data"
    clsname, image = "täßle #1 検", "test/hole/0 0 'ü'.png"
    (data / "tile").rename(data / clsname)
    (data / clsname / "test/hole/000.png").rename(data / clsname / image)
    for records, name in zip(lists_from_tree(data), ("train", "test"), strict=True):
        write_list(records, data / f"{name}.json")
    pictures = ("evaluator.vis_compound={save_dir: 'Bilder 検'}", "net.reconstruction.kwargs.save_recon={save_dir: 'Merk male'}")
    tiny.train(path)
    with start(path, "saver.auto_resume=True", "trainer.max_epoch=2") as (run,):
        assert run.code() == 0, run.log_text()
        assert f"resumed from {path.parent}/checkpoints/{LAST} after epoch 1 of 2" in run.log_text()
    tiny.evaluate(path, *pictures)
    with open(path.parent / "result/scores.csv", encoding="utf-8", newline="") as file:
        assert (f"{clsname}/{image}", clsname) in [(row["filename"], row["clsname"]) for row in csv.DictReader(file)]
    assert json.loads((path.parent / "result/metrics.json").read_text())[f"{clsname}_pixel_auc"] >= 0
    assert (path.parent / f"Bilder 検/{clsname}/{image}").with_suffix(".jpg").is_file()
    assert len(list((path.parent / "Merk male").rglob("*.npy"))) == 9


def test_a_checkpoint_cut_or_changed_anywhere_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    tiny.train(path)
    folder = path.parent / "checkpoints"
    last = folder / LAST
    shutil.copy(last, folder / PREVIOUS)
    whole, content = last.read_bytes(), load_checkpoint(last)
    rng = np.random.default_rng(0)
    for length in [0, *rng.integers(1, len(whole), 20), len(whole) - 1]:
        last.write_bytes(whole[:length])
        assert newest_whole(folder) == folder / PREVIOUS, length
    refused = 0
    for place in rng.integers(0, len(whole), 20):
        last.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        newest = newest_whole(folder)
        refused += newest == folder / PREVIOUS
        assert_same(load_checkpoint(newest), content)
    assert refused > 15  # what is not refused is in the zip file's own bookkeeping
