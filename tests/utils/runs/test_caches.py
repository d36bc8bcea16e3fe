"""tools/caches.py: old caches are found, shown with their sizes, and removed; nothing else is."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from datasets.cached import KEY
from tests.helpers import tiny
from tools import caches
from utils.errors import UserError


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*args: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["caches.py", *map(str, args)])
        caches.main()
        return capsys.readouterr().out.splitlines()

    return call


def set_age(days: int, *files: Path) -> None:
    for file in files:
        os.utime(file, times=(time.time() - 86400 * days,) * 2)


def test_old_caches_are_shown_and_removed_and_a_used_one_stays(tmp_path: Path, run) -> None:
    path = tiny.make(tmp_path)
    tiny.train(path)
    train, test = sorted((tmp_path / "feature_cache").iterdir(), reverse=True)
    left = train.with_name(f".{train.name}.{socket.gethostname()}.999999999.tmp")  # of a run that was killed
    left.mkdir()
    (tmp_path / "train-0123456789abcdef").mkdir()  # a folder of the user's own
    set_age(40, left, train / KEY, test / KEY)
    shown = run(tmp_path)
    assert [line.rpartition(" ")[2] for line in shown] == [str(folder) for folder in (left, test, train, tmp_path)]
    assert all("MB  used 40 days ago" in line for line in shown[:-1])
    tiny.train(path, overwrite=True)
    assert "used 0 days ago" in run(tmp_path)[1]
    set_age(40, train / KEY)
    run(tmp_path, "--remove", 30)
    assert list((tmp_path / "feature_cache").iterdir()) == [test]
    assert (tmp_path / "train-0123456789abcdef").is_dir()
    assert "removed" in run(tmp_path, "--remove", 0)[0]
    assert list((tmp_path / "feature_cache").iterdir()) == []


def test_a_folder_that_is_not_there_is_said(run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        run(tmp_path / "nowhere")


def test_a_negative_number_of_days_removes_nothing(run, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--remove", -3)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: --remove must be at least 0\n")
