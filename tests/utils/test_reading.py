"""Limits of what is read: one line, never longer than a screen, wherever YAML, JSON, names and options enter."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.lists import read_list
from tests.helpers import tiny
from utils.config import load_config
from utils.errors import UserError
from utils.limits import MESSAGE
from utils.process.arguments import positive_int, tool_parser
from utils.process.cli import run
from utils.reading import check_plain, is_inside, parse_json, read_bytes

JSON = {
    "brackets": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "levels": "[" * 40 + "]" * 40,
    "digits": "9" * 5000,
    "long number": "1" * 30,
    "NaN": "NaN",
    "Infinity": '{"a": [-Infinity]}',
    "overflow": "1e999",
    "NUL": '"a\\u0000b"',
    "half a character": '{"\\ud800": 1}',
    "long text": '"' + "a" * 5000 + '"',
    "nothing": "",
    "bytes": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json_beyond_the_limits_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_sensible_json_is_read() -> None:
    text = '{"name": "Geh\\udce4use.png", "numbers": [1, -2.5, true, null], "deep": [[[[[[]]]]]]}'
    assert parse_json(text)["numbers"] == [1, -2.5, True, None]


YAML = {
    "brackets": "a: " + "[" * 100_000,
    "levels": "a: " + "[" * 40 + "]" * 40,
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
    "digits": "random_seed: " + "1" * 5000,
    "sexagesimal": "random_seed: " + "1:" * 400_000 + "1",
    "seed": "random_seed: 1e23",
    "whole seed": "random_seed: 1" + "0" * 23,
    "date": "random_seed: 2024-99-99",
    "NUL": 'version: "a\\0b"',
    "half a character": 'version: "\\ud800"',
    "long text": "version: " + "a" * 5000,
    "long key": "a" * 5000 + ": 1",
    "long file": "# " + "a" * 1_100_000,
    "NaN": "trainer: {max_epoch: 1, clip_max_norm: .nan}",
    "infinite": "trainer: {max_epoch: 1, clip_max_norm: .inf}",
    "infinite rate": "trainer: {max_epoch: 1, optimizer: {type: AdamW, kwargs: {lr: .inf}}}",
    "workers": "dataset: {workers: 1000000000}",
    "bytes": "version: !!binary aGVsbG8=",
    "base": "base: " + "a" * 5000,
    "base NUL": 'base: "a\\0b"',
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_beyond_the_limits_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text + "\nnet: []\n")
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert "config.yaml" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= MESSAGE + 3


OVERRIDES = {
    "depth": "trainer." + "a." * 50_000 + "b=1",
    "brackets": "trainer.max_epoch=" + "[" * 100_000,
    "digits": "trainer.max_epoch=" + "1" * 5000,
    "NaN": "trainer.clip_max_norm=.nan",
    "long text": "saver.save_dir=" + "a" * 5000,
    "long key": "a" * 5000 + "=1",
    "half a character": "saver.save_dir=\ud800",
    "layers": "net.reconstruction.kwargs.num_decoder_layers=1000000000",
    "size": "dataset.input_size=[1000000000, 64]",
}


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
def test_an_override_beyond_the_limits_is_one_line(tmp_path: Path, override: str) -> None:
    path = tiny.make(tmp_path)
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= MESSAGE + 3


def test_a_name_that_the_shells_locale_cannot_hold_is_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"filename": "ä.png", "label": 0, "clsname": "a"}', encoding="utf-8")
    code = "from datasets.lists import read_list; from utils.process.cli import run; run(lambda: read_list('list.json'))"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=tiny.environment() | plain, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.endswith("a name that this shell's locale cannot hold, '\\xe4.png'; set PYTHONUTF8=1\n")


LINES = {
    "long name": '{"filename": "%s", "label": 0, "clsname": "a"}' % ("a" * 5000),
    "long part": '{"filename": "%s", "label": 0, "clsname": "a"}' % ("a" * 300),
    "long mask": '{"filename": "a", "maskname": "%s", "label": 0, "clsname": "a"}' % ("a" * 300),
    "NUL": '{"filename": "a\\u0000", "label": 0, "clsname": "a"}',
    "half a character": '{"filename": "a", "label": 0, "clsname": "\\ud800"}',
    "label": '{"filename": "a", "label": NaN, "clsname": "a"}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_of_a_list_beyond_the_limits_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "l.json").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"l\.json:1: ") as caught:
        read_list(tmp_path / "l.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "absent", "NUL", "long"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    paths = {"device": "/dev/zero", "pipe": tmp_path / "pipe", "folder": tmp_path, "absent": tmp_path / "a"}
    paths |= {"NUL": "a\0b", "long": "a" * 5000}
    with pytest.raises(OSError, match=r".+") as caught:
        read_bytes(paths[kind])
    assert caught.value.strerror
    with pytest.raises(UserError):
        read_list(paths[kind])


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "long", "wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(OSError, match="1,000,000,000,000 bytes, more than"):
        read_bytes(tmp_path / "long")


@pytest.mark.parametrize(
    "text", ["a\nb", "a" * 50_000_000, "\x1b[31mred", "line\u2028line"], ids=["line", "long", "colour", "U+2028"]
)
def test_a_message_is_one_line_and_no_longer_than_a_screen(text: str) -> None:
    line = str(UserError(f"{text}: cannot be read"))
    assert line.isprintable()
    assert len(line) < 2000
    assert line.endswith(": cannot be read")


def test_an_argument_is_not_repeated_at_length(capsys: pytest.CaptureFixture) -> None:
    parser = tool_parser("tool")
    parser.add_argument("--number", type=positive_int)
    for number in ("a" * 100_000, "9" * 30, "line\nbreak"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--number", number])
        usage, error = capsys.readouterr().err.splitlines()
        assert len(usage) + len(error) < 2000


def test_an_empty_argument_is_not_the_current_folder(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = tool_parser("tool")
    parser.add_argument("--root", type=Path)
    monkeypatch.setattr(sys, "argv", ["tool", "--root", ""])
    with pytest.raises(SystemExit) as ended:
        parser.parse_args()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: argument 2 is empty; is a variable of the shell not set?\n")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytes(2**60)])
def test_lack_of_memory_is_one_line(allocate: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as ended:
        run(allocate)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory is used up (")


def test_a_plain_value_is_of_few_kinds() -> None:
    check_plain({"a": [1, 2.5, "x", None, True, ()]})
    for value in (object(), b"", {1, 2}, float("nan"), {"a": {b"": 1}}):
        with pytest.raises(ValueError, match=r".+"):
            check_plain(value)


@pytest.mark.parametrize("name", ["/a.png", "../a.png", "a/../../b.png", "a/.."])
def test_a_name_that_leads_out_of_its_folder_is_known(name: str) -> None:
    assert not is_inside(name)
    assert is_inside("a/b..c/.d/...png")
