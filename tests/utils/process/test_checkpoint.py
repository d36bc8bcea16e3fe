"""Checkpoints: the published format, safety against what a file may hold, and files that are whole at any moment."""

import contextlib
import json
import os
import pickle
import re
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build_network
from models.losses import Criterion
from tests.helpers import tiny
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.process.checkpoint import (
    LAST,
    PREVIOUS,
    load_checkpoint,
    load_network_state,
    network_state,
    newest_whole,
    save_checkpoint,
)
from utils.training.optimizer import build_optimizer, build_scheduler
from utils.training.resume import resume
from utils.training.trainer import Trainer

MVTEC_KEYS = json.loads((tiny.ROOT / "tests/golden/mvtec_checkpoint_keys.json").read_text())
EPOCHS = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The configuration of a finished run of five epochs, with the checkpoint of every epoch."""
    path = tiny.make(tmp_path_factory.mktemp("trained"))
    tiny.train(path, f"trainer.max_epoch={EPOCHS}", "saver.always_save=True")
    return path


def checkpoint(config: Path, epoch: int | None = None) -> Path:
    return config.parent / "checkpoints" / ("ckpt.pth.tar" if epoch is None else f"ckpt_{epoch}.pth.tar")


# --- the published form ---


def save_published(path: Path, content: dict[str, Any], numpy_module: str, zipped: bool) -> None:
    """Write what the published code writes on a GPU: EasyDicts with derived values, a numpy.float64, AdamW's in random order."""
    arch = [EasyDict(subnet) for subnet in content["arch"]]
    arch[0].kwargs.outblocks, arch[0].kwargs.outstrides = [0, 2, 4], [2, 4, 8]
    optimizer = content["optimizer"]
    shuffled = np.random.default_rng(0).permutation(optimizer["param_groups"][0]["params"]).tolist()
    published = {
        "epoch": content["epoch"],
        "arch": arch,
        "state_dict": content["state_dict"],
        "best_metric": np.float64(0.5),
        "optimizer": {"state": optimizer["state"], "param_groups": [{**optimizer["param_groups"][0], "params": shuffled}]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(published, path, _use_new_zipfile_serialization=zipped)
    rename = (rb"cnumpy\._?core\.multiarray\nscalar\n", f"c{numpy_module}.multiarray\nscalar\n".encode())
    if not zipped:
        path.write_bytes(replace_once(*rename, path.read_bytes()))
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, replace_once(*rename, data) if name.endswith("data.pkl") else data)


def replace_once(pattern: bytes, new: bytes, data: bytes) -> bytes:
    data, count = re.subn(pattern, new, data)
    assert count == 1
    return data


def test_a_state_dict_of_the_published_mvtec_model_fits() -> None:
    config = load_config(tiny.ROOT / "experiments/MVTec-AD/config.yaml", ["net.backbone.kwargs.pretrained=False"])
    network = build_network(config.net)
    published = {key: torch.full(shape, 2, dtype=getattr(torch, kind)) for key, (shape, kind) in MVTEC_KEYS.items()}
    assert len(published) == 838
    load_network_state(network, published, "published.pth.tar")
    state = network_state(network)
    assert list(state) == list(MVTEC_KEYS)
    assert all(bool((tensor == 2).all()) for tensor in state.values())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("numpy_module", ["numpy.core", "numpy._core"])
def test_a_published_checkpoint_gives_the_numbers_of_its_weights(
    trained: Path, tmp_path: Path, numpy_module: str, zipped: bool
) -> None:
    content = load_checkpoint(checkpoint(trained))
    path = tmp_path / "published.pth.tar"
    save_published(path, content, numpy_module, zipped)
    assert zipfile.is_zipfile(path) == zipped
    assert all(text in path.read_bytes() for text in (numpy_module.encode(), b"cuda:0", b"easydict"))

    published = load_checkpoint(path)
    assert (published["epoch"], published["best_metric"]) == (EPOCHS, 0.5)
    assert type(published["arch"][0]) is not EasyDict
    assert all(torch.equal(published["state_dict"][key], tensor) for key, tensor in content["state_dict"].items())

    ours = tiny.evaluate(trained, f"evaluator.save_dir={tmp_path}/ours")
    theirs = tiny.evaluate(trained, f"evaluator.save_dir={tmp_path}/theirs", f"saver.load_path={path}")
    for name in ("metrics.json", "scores.csv"):
        assert Path(ours.evaluator.save_dir, name).read_text() == Path(theirs.evaluator.save_dir, name).read_text()


def test_a_published_checkpoint_resumes_with_weights_epoch_and_learning_rate(trained: Path, tmp_path: Path, caplog) -> None:
    config = load_config(trained)
    for epoch in range(1, EPOCHS + 1):
        content = load_checkpoint(checkpoint(trained, epoch))
        save_published(tmp_path / "published.pth.tar", content, "numpy._core", zipped=True)
        network = build_network(config.net)
        optimizer = build_optimizer(network, config.trainer.optimizer)
        scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler)
        trainer = Trainer(network, Criterion(config.criterion), optimizer, scheduler, to_plain(config))
        caplog.clear()
        with caplog.at_level("INFO", "uniad"):
            resume(trainer, tmp_path / "published.pth.tar")
        (line,) = caplog.messages
        assert "optimiser state is left out" in line
        assert (trainer.epoch, trainer.best_metric) == (epoch, 0.5)
        assert all(torch.equal(tensor, content["state_dict"][key]) for key, tensor in network_state(network).items())
        assert optimizer.param_groups[0]["lr"] == content["optimizer"]["param_groups"][0]["lr"]
        assert scheduler.last_epoch == content["scheduler"]["last_epoch"]
        assert not optimizer.state


def test_training_goes_on_from_a_published_checkpoint(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "published.pth.tar"
    save_published(path, load_checkpoint(checkpoint(trained, 2)), "numpy.core", zipped=False)
    tiny.train(trained, "trainer.max_epoch=3", f"saver.resume_model={path}", f"saver.save_dir={tmp_path}/more")
    content = load_checkpoint(tmp_path / "more/ckpt.pth.tar")
    assert (content["epoch"], content["best_metric"] >= 0.5) == (3, True)
    assert {int(state["step"]) for state in content["optimizer"]["state"].values()} == {3}  # of this epoch alone


# --- our form ---


def leaves(value: Any) -> list[Any]:
    """Everything in nested lists, tuples and dicts; their own types are checked on the way."""
    if isinstance(value, dict):
        assert type(value) is dict
        return [leaf for item in [*value, *value.values()] for leaf in leaves(item)]
    if isinstance(value, list | tuple):
        assert type(value) in (list, tuple)
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_our_checkpoint_holds_the_whole_run_in_plain_data(trained: Path) -> None:
    assert np.dtype not in torch.serialization.get_safe_globals()  # plain torch reads it, without having been told of our types
    content = torch.load(checkpoint(trained), weights_only=True)
    assert set(content) == {
        "epoch", "arch", "state_dict", "best_metric", "optimizer", "scheduler", "random_states", "config", "versions", "history",
        "running_epoch"
    }  # fmt: skip
    assert all(key.startswith("module.") for key in content["state_dict"])
    assert {type(leaf) for leaf in leaves(content)} <= {torch.Tensor, int, float, str, bool, type(None)}
    assert content["epoch"] == content["config"]["trainer"]["max_epoch"] == EPOCHS
    assert content["arch"] == content["config"]["net"]
    assert {"torch", "numpy", "python"} <= set(content["versions"])


# --- files that are not what they should be ---


class Hostile:
    """Unpickling this the ordinary way makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.mark}'",)


HOSTILE: dict[str, Callable[[Path, Any], None]] = {
    "zip": lambda path, content: torch.save(content, path),
    "legacy": lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path, content: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("form", HOSTILE)
@pytest.mark.parametrize("beside_weights", [True, False])
def test_code_in_a_file_is_never_run(tmp_path: Path, form: str, beside_weights: bool) -> None:
    path, mark = tmp_path / "hostile.pth.tar", tmp_path / "ran"
    hostile = Hostile(mark)
    content = {"state_dict": {"module.a": torch.zeros(2)}, "epoch": 1, "arch": [hostile]} if beside_weights else hostile
    HOSTILE[form](path, content)
    with pytest.raises(UserError, match=r"hostile\.pth\.tar: refused, it asks for [\w.]+,") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()  # an unsafe reader does run it


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "ckpt.pth.tar"
    torch.save({"epoch": 1, "state_dict": {"module.a": torch.randn(500)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    assert load_checkpoint(path)["epoch"] == 1
    for length in [0, 1, 10, *range(50, len(whole), 150), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"ckpt\.pth\.tar: ") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value), length


def test_changed_bytes_are_an_error_or_of_no_consequence(tmp_path: Path) -> None:
    """In the zip form, which is ours: anywhere in the file, one at a time."""
    path = tmp_path / "ckpt.pth.tar"
    content = {"epoch": 1, "state_dict": {"module.a": torch.randn(50)}}
    torch.save(content, path)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            loaded = load_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert loaded["epoch"] == 1, place
        assert torch.equal(loaded["state_dict"]["module.a"], content["state_dict"]["module.a"]), place
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch,loss\n1,0.5\n", "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged"),
        (torch.zeros(3), "no state_dict"),
        ([1, 2], "no state_dict"),
        ({"module.a": torch.zeros(3)}, "no state_dict"),
        ({"state_dict": [torch.zeros(3)]}, "no state_dict"),
        ({"state_dict": {"module.a": 3}}, "no state_dict"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "foreign.pth.tar"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=rf"foreign\.pth\.tar: .*{message}"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_network_is_an_error_that_names_the_keys(trained: Path) -> None:
    file = re.escape(str(checkpoint(trained)))
    with pytest.raises(UserError, match=rf"{file}: .*of another shape \(reconstruction\..* for "):
        tiny.evaluate(trained, "net.reconstruction.kwargs.hidden_dim=32")
    with pytest.raises(UserError, match=rf"{file}: .*missing \(reconstruction\.transformer\.decoder\..*, …\)"):
        tiny.evaluate(trained, "net.reconstruction.kwargs.num_decoder_layers=2")
    with pytest.raises(UserError, match=rf"{file}: .*unexpected \(reconstruction\..*\)"):
        tiny.evaluate(trained, "net.reconstruction.kwargs.num_encoder_layers=0")
    other = ("net.backbone.type=models.backbones.resnet18", "net.backbone.kwargs.outlayers=[1]")
    with pytest.raises(UserError, match=rf"{file}: .*missing \(backbone\..*unexpected \(backbone\."):
        tiny.train(trained, *other, "saver.auto_resume=True")


def test_weights_alone_are_evaluated_but_not_resumed(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth.tar"
    save_checkpoint(path, {"state_dict": load_checkpoint(checkpoint(trained))["state_dict"]})
    tiny.evaluate(trained, f"saver.load_path={path}")
    with pytest.raises(UserError, match=r"weights\.pth\.tar: holds weights only"):
        tiny.train(trained, f"saver.resume_model={path}")


# --- whole at any moment ---


def numbered(epoch: int, size: int) -> dict[str, Any]:
    return {"epoch": epoch, "state_dict": {"module.a": torch.zeros(size)}}


def test_a_full_disk_leaves_the_last_two_checkpoints_and_one_line(tmp_path: Path) -> None:
    size = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path))
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(size, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        path, previous = tmp_path / LAST, tmp_path / PREVIOUS
        for epoch in (1, 2):
            save_checkpoint(path, numbered(epoch, 100_000), previous)
        with pytest.raises(UserError, match=r"ckpt\.pth\.tar: cannot be written \(No space left on device\)"):
            save_checkpoint(path, numbered(3, 100_000), previous)  # three at once have no room
        assert [load_checkpoint(file)["epoch"] for file in (path, previous)] == [2, 1]
        assert sorted(os.listdir(tmp_path)) == sorted([LAST, PREVIOUS])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_one_before_is_kept_but_never_replaced_by_a_damaged_one(tmp_path: Path) -> None:
    path, previous = tmp_path / LAST, tmp_path / PREVIOUS
    for epoch in (1, 2, 3):
        save_checkpoint(path, numbered(epoch, 100), previous)
    assert [load_checkpoint(file)["epoch"] for file in (path, previous)] == [3, 2]
    path.write_bytes(path.read_bytes()[:-100])
    save_checkpoint(path, numbered(4, 100), previous)
    assert [load_checkpoint(file)["epoch"] for file in (path, previous)] == [4, 2]


def test_a_run_killed_at_any_moment_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    path, output = tiny.make(tmp_path), tmp_path / "stdout"
    last, epoch = checkpoint(path), 0
    for while_writing in (True, False):
        with open(output, "w") as stdout:
            arguments = tiny.command(path, "trainer.max_epoch=100000", "saver.auto_resume=True")
            process = subprocess.Popen(arguments, cwd="/", env=tiny.environment(), stdout=stdout)
        try:
            wait_until(lambda: output.read_text().count("saved ckpt") > 1, process)
            before = sizes(last.parent)
            if while_writing:
                wait_until(lambda before=before: sizes(last.parent) != before, process)
        finally:
            process.kill()
            process.wait()
        assert ("resumed from" in output.read_text()) == (epoch > 0)
        epoch_before, epoch = epoch, load_checkpoint(newest_whole(last.parent))["epoch"]
        assert epoch >= epoch_before + 2
    tiny.train(path, f"trainer.max_epoch={epoch + 1}", "saver.auto_resume=True")
    assert load_checkpoint(last)["epoch"] == epoch + 1


SECONDS = 300  # until a training that does not go on fails the test


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline, "the training hangs"
        time.sleep(0.001)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file; a temporary one may vanish while it is looked at."""
    found = {}
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[file.name] = file.stat().st_size
    return found


@pytest.mark.parametrize("auto_resume", [True, False])
def test_a_temporary_file_left_behind_is_not_taken_for_a_checkpoint(tmp_path: Path, auto_resume: bool) -> None:
    path = tiny.make(tmp_path)
    left = tmp_path / "checkpoints/.ckpt.pth.tar.123.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    tiny.train(path, f"saver.auto_resume={auto_resume}")
    assert load_checkpoint(checkpoint(path))["epoch"] == 1


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: b"PK\x03\x04" + tail)), st.booleans())
def test_any_bytes_as_a_checkpoint_give_one_line(tmp_path_factory, content: bytes, pickled: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pth.tar"
    path.write_bytes(b"\x80\x02" * pickled + content)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
