"""A checkpoint that someone else wrote gives a result or one line, in predict, export, evaluate and resume."""

import copy
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import tiny
from utils.errors import UserError
from utils.predict.export import export_checkpoint
from utils.predict.predictor import Predictor
from utils.process.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The configuration of a trained network."""
    path = tiny.make(tmp_path_factory.mktemp("hostile"))
    tiny.train(path)
    return path


@pytest.fixture(scope="module")
def content(path: Path) -> dict[str, Any]:
    return load_checkpoint(path.parent / "checkpoints/ckpt.pth.tar")


@pytest.fixture
def refused(path: Path, tmp_path: Path) -> Callable[[Callable[[Path], Any], dict[str, Any]], str]:
    """A function that saves a checkpoint's content, gives it to a tool, and returns the tool's one line."""

    def call(use: Callable[[Path], Any], changed: dict[str, Any]) -> str:
        torch.save(changed, tmp_path / "given.pth.tar")
        with pytest.raises(UserError, match=r"given\.pth\.tar: ") as caught:
            use(tmp_path / "given.pth.tar")
        assert str(caught.value).isprintable()
        return str(caught.value)

    return call


def evaluate(path: Path) -> Callable[[Path], Any]:
    return lambda given: tiny.evaluate(path, f"saver.load_path={given}")


def resume(path: Path) -> Callable[[Path], Any]:
    folders = [f"{key}={path.parent}/again" for key in ("saver.save_dir", "saver.log_dir", "evaluator.save_dir")]
    return lambda given: tiny.train(path, f"saver.resume_model={given}", "trainer.max_epoch=2", *folders)


# --- the file ---


def test_packed_members_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "packed.pth.tar"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w", force_zip64=True) as member,
    ):
        for _ in range(100):
            member.write(bytes(10**7))  # a gigabyte, in a megabyte
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"packed\.pth\.tar: damaged or not a checkpoint"):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shared.pth.tar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(10**5))
        for number in range(1, 1000):
            info = copy.copy(archive.filelist[0])
            info.filename = f"archive/data/{number}"
            archive.filelist.append(info)
    assert os.path.getsize(path) < 10**6
    with pytest.raises(UserError, match=r"shared\.pth\.tar: damaged or not a checkpoint"):
        load_checkpoint(path)


TENSORS = {
    "of stride 0": torch.zeros(1).expand(10**12),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "no tensor": [1.0],
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_tensor_of_another_kind_is_refused(content: dict[str, Any], refused, tensor: Any) -> None:
    weights = {**content["state_dict"], "module.reconstruction.output_proj.bias": tensor}
    message = refused(load_checkpoint, {**content, "state_dict": weights})
    assert "no state_dict of tensors" in message or "damaged or not a checkpoint" in message


STATES: dict[str, dict[str, Any]] = {
    "epoch is a text": {"epoch": "one"},
    "epoch below 0": {"epoch": -1},
    "epoch without end": {"epoch": 10**18},
    "best_metric": {"best_metric": "high"},
    "history": {"history": 5},
    "history of lists": {"history": [[1]]},
    "history of texts": {"history": [{"epoch": "one"}]},
    "running_epoch": {"running_epoch": {"images": -1, "steps": 1, "loss_sums": [0.0]}},
    "loss_sums": {"running_epoch": {"images": 1, "steps": 1, "loss_sums": ["a"]}},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_of_another_kind_is_refused(content: dict[str, Any], refused, state: dict[str, Any]) -> None:
    assert f"its {next(iter(state))}" in refused(load_checkpoint, {**content, **state})


# --- its configuration: the cases are in tests/utils/config/test_stored.py ---

CONFIGS: dict[str, Any] = {
    "type": lambda config: config["net"][2].update(type="os.system"),
    "section": lambda config: config.pop("trainer") and config.pop("dataset"),
    "size": lambda config: config["dataset"].update(input_size=[100_000, 100_000]),
    "kind": lambda config: config["trainer"].update(optimizer=5),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tool", ["predict", "export", "resume"])
def test_a_configuration_that_no_file_could_be_is_one_line(path: Path, content, refused, tool: str, change) -> None:
    config = copy.deepcopy(content["config"])
    change(config)
    use = {"predict": Predictor.from_checkpoint, "export": lambda given: export_checkpoint(given, "onnx"), "resume": resume(path)}
    assert "its configuration" in refused(use[tool], {**content, "config": config})


def test_a_list_that_never_ends_is_not_read(content, tmp_path: Path) -> None:
    config = copy.deepcopy(content["config"])
    for split in ("train", "test"):
        config["dataset"][split]["meta_file"] = "/dev/zero"
    torch.save({**content, "config": config}, tmp_path / "zero.pth.tar")
    assert "random images" in export_checkpoint(tmp_path / "zero.pth.tar", "torchscript")  # as where the list is gone


# --- resuming ---


def test_an_evaluation_names_a_history_that_is_none(path: Path, content, refused) -> None:
    assert "its history" in refused(evaluate(path), {**content, "history": {"epoch": 1}})


def moments(content: dict[str, Any]) -> None:
    next(iter(content["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(2, 2, 2)


TRAINING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no optimiser": lambda content: content.pop("optimizer"),
    "optimiser": lambda content: content.update(optimizer=5),
    "group": lambda content: content["optimizer"]["param_groups"][0].update(lr="fast"),
    "groups": lambda content: content["optimizer"].update(param_groups=[]),
    "moments": moments,
    "schedule": lambda content: content.update(scheduler=5),
    "rates": lambda content: content["scheduler"].update(base_lrs=["fast"]),
    "step size": lambda content: content["scheduler"].update(step_size="one"),
    "no random states": lambda content: content.pop("random_states"),
    "random states": lambda content: content.update(random_states=[{}]),
    "generator": lambda content: content["random_states"][0].update(torch=torch.zeros(3)),
    "a generator's number": lambda content: content["random_states"][0]["python"][1].__setitem__(0, 2**65),
    "position": lambda content: content.update(running_epoch={"images": 5, "steps": 0, "loss_sums": [0.0]}),
    "configuration": lambda content: content.update(config=None),
}


@pytest.mark.parametrize("change", TRAINING.values(), ids=TRAINING)
def test_a_training_state_of_another_kind_is_one_line(path: Path, content, refused, change) -> None:
    changed = copy.deepcopy(content)
    change(changed)
    refused(resume(path), changed)
    assert not (path.parent / "again").exists()


def test_what_a_schedule_does_not_have_is_left_out(path: Path, content, tmp_path: Path) -> None:
    changed = copy.deepcopy(content)
    changed["scheduler"]["step"] = 5  # would replace the method
    torch.save(changed, tmp_path / "given.pth.tar")
    resume(path)(tmp_path / "given.pth.tar")
    assert load_checkpoint(path.parent / "again/ckpt.pth.tar")["epoch"] == 2
