"""Folders that a run writes: one process at a time, and no way out of them by a planted link."""

import csv
import io
import os
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny
from tests.helpers.locks import held_by_another
from utils.errors import UserError
from utils.files import LOCK, from_cell, lock, open_to_append, to_cell, write_below, write_text

# --- locks ---


def test_a_locked_folder_says_who_is_there(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process, pytest.raises(UserError) as caught, lock(tmp_path):
        pass
    assert f"{tmp_path}: process {process.pid} on {socket.gethostname()}, since " in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process(tmp_path: Path, number: int) -> None:
    with held_by_another(tmp_path) as process:
        process.send_signal(number)
        process.wait()
        assert (tmp_path / LOCK).exists()  # left behind
        with lock(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


def test_a_lock_leaves_nothing_and_may_be_taken_twice_by_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    with lock(folder), lock(folder):
        assert folder.is_dir()
    assert not (tmp_path / "a").exists()
    with lock(folder):
        write_text(folder / "kept", "")
    assert [path.name for path in folder.iterdir()] == ["kept"]


RUNS = {
    "training": ((), "checkpoints"),
    "training, its results": ((), "result"),
    "training, its log": ((), "log"),
    "evaluation": (("-e",), "result"),
}


@pytest.mark.parametrize(("arguments", "name"), RUNS.values(), ids=RUNS)
def test_a_second_run_says_who_is_there_and_writes_nothing(tmp_path: Path, arguments: tuple[str, ...], name: str) -> None:
    path = tiny.make(tmp_path)
    with held_by_another(tmp_path / name) as process:
        before = set(tmp_path.rglob("*"))
        outcome = tiny.run_tool(path, *arguments)
        new = {file.name for file in set(tmp_path.rglob("*")) - before}
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert f"process {process.pid} on" in line
    assert new <= {"log", "train.log", "eval.log"}


# --- links ---


def test_a_new_file_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "ours").symlink_to(tmp_path / "other")
    (tmp_path / f".ours.{os.getpid()}.tmp").symlink_to(tmp_path / "other")
    write_text(tmp_path / "ours", "new")
    with open_to_append(tmp_path / "ours") as file:
        file.write(b" line")
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with open_to_append(tmp_path / "log") as file:
        file.write(b"line")
    assert (tmp_path / "other").read_text() == "theirs"
    assert (tmp_path / "ours").read_text() == "new line"


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/pictures").mkdir(parents=True)
    (tmp_path / "out/pictures/cup").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"pictures/cup: a link in it leads out of .*; remove it"):
        write_below(tmp_path / "out", "pictures/cup/a.jpg", lambda file: None)
    assert not any((tmp_path / "elsewhere").iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")  # the folder itself may be one
    write_below(tmp_path / "link", "a.jpg", lambda file: None)
    assert (tmp_path / "elsewhere/a.jpg").exists()


# --- cells ---


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-1"])
def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    (cell,) = next(csv.reader([to_cell(text)]))
    assert cell == f"'{text}"
    assert from_cell(cell) == text


@given(st.text())
def test_any_text_survives_a_cell(text: str) -> None:
    ((cell, _),) = csv.reader(io.StringIO(f"{to_cell(text)},1\n", newline=""))
    assert from_cell(cell) == text
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r")
