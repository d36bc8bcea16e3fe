"""A user's mistake is one line that says what is wrong and where, without a traceback or half-written files."""

import errno
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny
from utils.errors import UserError
from utils.process.checkpoint import load_checkpoint
from utils.process.cli import run
from utils.process.signals import StopSignals

IMAGE = "cup/train/good/003.png"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tiny.make(tmp_path_factory.mktemp("trained"))
    tiny.train(path)
    return path.parent / "checkpoints/ckpt.pth.tar"


def files(folder: Path) -> set[Path]:
    """All files below the folder, except the log."""
    return {file for file in folder.rglob("*") if file.relative_to(folder).parts[0] != "log"}


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def spoil(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def break_line(number: int) -> Callable[[Path], None]:
    """Cut a line of the training list short."""

    def damage(folder: Path) -> None:
        lines = (folder / "data/train.json").read_text().splitlines()
        lines[number - 1] = lines[number - 1][:-1]
        (folder / "data/train.json").write_text("\n".join(lines))

    return damage


def list_absent_image(folder: Path) -> None:
    with open(folder / "data/train.json", "a") as file:
        file.write(json.dumps({"filename": "cup/train/good/absent.png", "label": 0, "clsname": "cup"}) + "\n")


@dataclass
class Fault:
    """A mistake: the damage, the overrides, and what the error line must say."""

    message: str
    overrides: tuple[str, ...] = ()
    damage: Callable[[Path], None] = lambda folder: None


FAULTS = {
    "key": Fault(r"config\.yaml: trainer\.max_epochs is not a key: did you mean", ("trainer.max_epochs=2",)),
    "value": Fault(r"config\.yaml: trainer\.max_epoch must be a whole number", ("trainer.max_epoch=two",)),
    "folder": Fault(r"/nowhere is not a folder; set dataset\.image_", ("dataset.image_reader.kwargs.image_dir=nowhere",)),
    "list": Fault(r"no list .*data/train\.json", damage=remove("data/train.json")),
    "test list": Fault(r"no list .*data/test\.json", damage=remove("data/test.json")),
    "line": Fault(r"data/train\.json:4: not valid JSON", damage=break_line(4)),
    "image": Fault(rf"{IMAGE} .*is not an image .*train\.json", damage=spoil(f"data/{IMAGE}", b"no image")),
    "empty image": Fault(rf"{IMAGE} .*is not an image .*train\.json", damage=spoil(f"data/{IMAGE}", b"")),
    "listed image": Fault(r"no file cup/train/good/absent\.png .*train\.json", damage=list_absent_image),
    "backbone": Fault(r"net\.backbone\.type .*resnet19' is unknown", ("net.backbone.type=models.backbones.resnet19",)),
    "layer": Fault(r"efficientnet_lite0 has no layer 6", ("net.backbone.kwargs.outlayers=[2, 6]",)),
    "size": Fault(r"input_size \[60, 64\] must be divisible by 8", ("dataset.input_size=[60, 64]",)),
    "window": Fault(
        r"neighbor_size 9x9 covers the whole 8x8 feature grid", ("net.reconstruction.kwargs.neighbor_mask.neighbor_size=[9, 9]",)
    ),
    "heads": Fault(r"hidden_dim 16 must be a multiple of nhead 3", ("net.reconstruction.kwargs.nhead=3",)),
    "metric": Fault(
        r"key_metric 'screw_pixel_auc': the test set has no class 'screw'", ("evaluator.key_metric=screw_pixel_auc",)
    ),
    "weights": Fault(
        r"absent\.pth: no such file of weights",
        ("net.backbone.kwargs.pretrained=True", "net.backbone.kwargs.pretrained_model=absent.pth"),
    ),
    "resume": Fault(r"absent\.pth\.tar: there is no such checkpoint", ("saver.resume_model=absent.pth.tar",)),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_mistake_is_one_line_and_no_file(path: Path, fault: Fault) -> None:
    fault.damage(path.parent)
    before = files(path.parent)
    with pytest.raises(UserError, match=fault.message) as caught:
        tiny.train(path, *fault.overrides)
    assert "\n" not in str(caught.value)
    assert files(path.parent) == before


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (None, (), "there is no such checkpoint"),
        (b"no checkpoint", (), "damaged or not a checkpoint"),
        (b"", (), "damaged or not a checkpoint"),
        ("half", (), "damaged or not a checkpoint"),
        ("whole", ("net.reconstruction.kwargs.dim_feedforward=8",), "of another network, keys .*linear1"),
        ("whole", ("dataset.test.meta_file=absent.json",), "no list .*absent.json"),
        ("whole", ("evaluator.save_dir=data/train.json",), "cannot be written"),
    ],
)
def test_a_mistake_in_evaluation_is_one_line_and_no_file(
    path: Path, checkpoint: Path, content: bytes | str | None, overrides: tuple[str, ...], message: str
) -> None:
    if content is not None:
        whole = checkpoint.read_bytes()
        content = {"half": whole[: len(whole) // 2], "whole": whole}.get(content, content)
        (path.parent / "given.pth.tar").write_bytes(content)
    before = files(path.parent)
    with pytest.raises(UserError, match=message) as caught:
        tiny.evaluate(path, "saver.load_path=given.pth.tar", *overrides)
    assert "\n" not in str(caught.value)
    assert files(path.parent) == before


def test_a_map_that_is_not_finite_names_the_image(path: Path, checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)
    content["state_dict"]["module.reconstruction.output_proj.bias"].fill_(float("nan"))
    torch.save(content, path.parent / "nan.pth.tar")
    with pytest.raises(UserError, match=r"cup/test/good/000\.png: its anomaly map holds values that are not finite"):
        tiny.evaluate(path, "saver.load_path=nan.pth.tar")
    assert not (path.parent / "result").exists()


IN_A_PROCESS = {
    "key": ("trainer.max_epochs=2",),
    "image": ("dataset.workers=2",),
    "resume": ("-e", "saver.load_path=absent.pth.tar"),
}


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_tool_says_it_on_stderr_and_exits_with_2(path: Path, name: str) -> None:
    FAULTS[name].damage(path.parent)
    before = files(path.parent)
    outcome = tiny.run_tool(path, *IN_A_PROCESS[name])
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert re.match(f"error: .*{FAULTS[name].message}", line)
    assert "Traceback" not in outcome.stdout
    assert files(path.parent) == before


@pytest.mark.parametrize("tool", sorted((tiny.ROOT / "tools").glob("*.py")), ids=lambda tool: tool.stem)
def test_ctrl_c_before_a_tool_has_started_is_one_line(tmp_path: Path, tool: Path) -> None:
    for package in ("cv2", "numpy", "torch", "pydantic", "matplotlib"):  # whose import takes seconds, in which people press it
        (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt")
    environment = tiny.environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(tool), "--help"], env=environment, capture_output=True, text=True)
    if done.returncode == 0:  # it imports none of them
        assert done.stdout.startswith("usage: ")
    else:
        assert (done.stderr, done.returncode) == ("interrupted\n", -signal.SIGINT)


class InterruptedFile(io.RawIOBase):
    """In the middle of whose first write comes a Ctrl-C."""

    written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        if not self.written:
            os.kill(os.getpid(), signal.SIGINT)
        self.written += bytes(data)
        return len(data)


def test_ctrl_c_in_the_middle_of_a_line_of_the_log_loses_nothing(capfd: pytest.CaptureFixture) -> None:
    file, log = InterruptedFile(), logging.getLogger("uniad")
    handler = logging.StreamHandler(io.TextIOWrapper(io.BufferedWriter(file), write_through=True))
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup make test &` ignores it
    try:
        with StopSignals() as signals:
            log.info("a line")
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
        log.removeHandler(handler)
        log.setLevel(level)
    assert (signals.received, file.written) == (signal.SIGINT, b"a line\n")
    assert capfd.readouterr().err == "Ctrl-C: this step ends and is saved; once more leaves at once\n"


def test_a_library_that_finds_no_memory_is_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: failed to map segment from shared object')")
    tool, environment = tiny.ROOT / "tools/train_val.py", tiny.environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(tool), "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: memory is used up (libtorch.so: failed to map segment")
    assert done.stderr.endswith("raise the limit (ulimit -v)\n")


def test_too_many_open_files_are_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files", "a.png")

    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as ended:
        run(fail)
    line = "error: too many open files: raise the limit (ulimit -n), or set dataset.workers=0\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, line)


def test_a_current_folder_that_was_removed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    tool = shlex.join([sys.executable, str(tiny.ROOT / "tools/prepare_data.py"), "folder", "--root", ".", "--out", "lists"])
    command = f"rmdir ../gone && {tool}"
    done = subprocess.run(command, shell=True, cwd=tmp_path / "gone", env=tiny.environment(), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the current folder no longer exists: go to another one (cd)\n")
