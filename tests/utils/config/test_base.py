"""A configuration that names its base holds only what differs; --print_config shows what a run will use."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import tiny
from utils.config import load_config, read_config
from utils.config.document import page
from utils.errors import UserError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A whole configuration in a folder of its own."""
    return tiny.make(tmp_path / "base")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_not_named_is_the_base_s(base: Path) -> None:
    own = write(base.parent.parent / "own/config.yaml", "base: ../base/config.yaml\ntrainer: {max_epoch: 7}\n")
    config, whole = load_config(own), load_config(base)
    assert (config.trainer.max_epoch, whole.trainer.max_epoch) == (7, 1)
    assert config.trainer.optimizer == whole.trainer.optimizer
    assert config.net == whole.net


def test_subnets_are_merged_by_name_and_new_ones_come_last(base: Path) -> None:
    text = "base: config.yaml\nnet: [{name: reconstruction, kwargs: {hidden_dim: 8}}, {name: head, type: x}]"
    with pytest.raises(UserError, match=r"net\.head\.type 'x' is unknown"):
        load_config(write(base.parent / "own.yaml", text))
    config = load_config(write(base.parent / "own.yaml", text.replace(", {name: head, type: x}", "")))
    assert [subnet.name for subnet in config.net] == ["backbone", "neck", "reconstruction"]
    assert (config.net[2].kwargs.hidden_dim, config.net[2].kwargs.nhead) == (8, 2)


def test_other_lists_are_replaced(base: Path) -> None:
    text = "base: config.yaml\nevaluator: {metrics: {auc: [{name: pixel}]}}\n"
    assert [score.name for score in load_config(write(base.parent / "own.yaml", text)).evaluator.metrics.auc] == ["pixel"]


def test_the_kwargs_of_another_type_are_not_inherited(base: Path) -> None:
    text = "base: config.yaml\ntrainer: {lr_scheduler: {type: OneCycleLR, kwargs: {max_lr: 0.01}}}\n"
    assert load_config(write(base.parent / "own.yaml", text)).trainer.lr_scheduler.kwargs == {"max_lr": 0.01}


def test_an_inherited_section_is_dropped_by_false(base: Path) -> None:
    subnet = "net: [{name: reconstruction, kwargs: {neighbor_mask: False}}]\n"
    config = load_config(write(base.parent / "own.yaml", f"base: config.yaml\n{subnet}"))
    assert config.net[2].kwargs.neighbor_mask is None


def test_paths_of_the_base_are_relative_to_the_configuration_that_is_run(base: Path) -> None:
    own = write(base.parent.parent / "own/config.yaml", "base: ../base/config.yaml\n")
    config = load_config(own)
    assert config.saver.save_dir == str(own.parent / "checkpoints")
    assert config.dataset.train.meta_file == str(own.parent / "data/train.json")


def test_a_base_may_have_a_base(base: Path) -> None:
    write(base.parent / "middle.yaml", "base: config.yaml\ntrainer: {max_epoch: 2}\nrandom_seed: 3\n")
    config = load_config(write(base.parent / "own.yaml", "base: middle.yaml\nrandom_seed: 4\n"))
    assert (config.trainer.max_epoch, config.random_seed) == (2, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml", r"own\.yaml: there is no base .*nowhere\.yaml; base is relative to the file that names it"),
        ("base: own.yaml", r"own\.yaml: base own\.yaml leads back to .*own\.yaml"),
        ("base: [config.yaml]", r"own\.yaml: base must be a path, not \['config\.yaml'\]"),
        (
            "base: config.yaml\ntrainer: {max_epok: 1}",
            r"own\.yaml: trainer\.max_epok is not a key: did you mean 'trainer\.max_epoch'",
        ),
    ],
)
def test_a_base_that_does_not_serve_is_one_line(base: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(base.parent / "own.yaml", text))
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_in_one_line(base: Path) -> None:
    overrides = ["trainer.max_epok=1", "dataset.batch_size=0", "saver.always_save=1", "net.neck.kwargs.stride=1"]
    with pytest.raises(UserError) as caught:
        load_config(base, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for key in ("trainer.max_epok", "dataset.batch_size", "saver.always_save", "net.neck.kwargs.stride"):
        assert key in message


def test_problems_between_sections_are_told_together(base: Path) -> None:
    overrides = ["dataset.train.meta_file=null", "evaluator.key_metric=mean_max_ap", "net.neck.kwargs.outstrides=[8, 16]"]
    words = r"dataset\.train\.meta_file .*; evaluator\.key_metric .*; net\.neck\.kwargs\.outstrides "
    with pytest.raises(UserError, match=words):
        load_config(base, overrides)


def test_of_many_problems_the_first_five_are_told(base: Path) -> None:
    with pytest.raises(UserError, match=r"; and 3 more$"):
        load_config(base, [f"saver.unknown_{number}=1" for number in range(8)])


def test_the_printed_configuration_is_a_configuration_of_the_same_run(base: Path) -> None:
    command = [sys.executable, str(tiny.TRAIN_VAL), "--config", str(base), "trainer.max_epoch=5", "--print_config"]
    printed = subprocess.run(command, cwd="/", env=tiny.environment(), capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(printed) == read_config(base, ["trainer.max_epoch=5"])
    assert load_config(write(base.parent / "printed.yaml", printed)) == load_config(base, ["trainer.max_epoch=5"])
    assert not (base.parent / "log").exists()


def test_a_wrong_configuration_is_not_printed(base: Path) -> None:
    outcome = tiny.run_tool(base, "trainer.max_epok=1", "--print_config")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "did you mean 'trainer.max_epoch'" in outcome.stderr


def test_the_page_of_keys_is_current() -> None:
    assert (tiny.ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("value", ["null", "False"])
def test_a_section_that_is_turned_off_is_not_in_the_result(base: Path, value: str) -> None:
    for section in ("dataset", "saver", "evaluator"):
        assert section not in load_config(base, [f"{section}={value}"])


@pytest.mark.parametrize("value", ["null", "abc", "[1]", "{}", "0"])
def test_a_step_size_that_is_no_number_is_named(base: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"trainer\.lr_scheduler\.kwargs\.step_size must be at least 1"):
        load_config(base, [f"trainer.lr_scheduler.kwargs.step_size={value}"])
