"""A configuration out of a checkpoint is checked like one in a file, and comes out as it was saved."""

import copy
from typing import Any

import pytest

from tests.helpers import tiny
from utils.config import load_config, stored_config, to_plain
from utils.errors import UserError

EXPERIMENTS = sorted(tiny.ROOT.glob("experiments/**/config.yaml"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Any]:
    return to_plain(load_config(tiny.make(tmp_path_factory.mktemp("stored"))))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_what_was_loaded_is_accepted_and_unchanged(path) -> None:
    config = to_plain(load_config(path, class_name="cup" if "vis" in path.parent.name else None))
    assert to_plain(stored_config(copy.deepcopy(config), "c.pth.tar")) == config


def test_a_section_that_is_turned_off_for_a_split_stays_off(tmp_path) -> None:
    given = ("dataset.colorjitter={prob: 0.5}", "dataset.test.colorjitter=False")
    config = stored_config(to_plain(load_config(tiny.make(tmp_path), given)), "c.pth.tar")
    assert config.dataset.colorjitter.prob == 0.5
    assert config.dataset.test.colorjitter is None


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def doubled(times: int) -> list:
    """A list of 2 ** times values that takes no room."""
    value: list = [0]
    for _ in range(times):
        value = [value, value]
    return value


def cycle() -> list:
    value: list = []
    value.append(value)
    return value


ATTACKS: dict[str, tuple[str, Any, str]] = {
    "type": ("net.2.type", "os.system", "net.reconstruction.type 'os.system' is unknown"),
    "no type": ("net.2.type", 5, "net.reconstruction.type"),
    "section": ("dataset", None, "has no section 'dataset'"),
    "kind": ("dataset.input_size", "64", "dataset.input_size must be two positive whole numbers"),
    "size": ("dataset.input_size", [100_000, 100_000], "dataset.input_size"),
    "NaN": ("net.2.kwargs.dropout", float("nan"), "the number nan"),
    "layers": ("net.2.kwargs.num_decoder_layers", 10**9, "num_decoder_layers must be at most 256"),
    "width": ("net.2.kwargs.hidden_dim", 10**9, "hidden_dim must be at most 16384"),
    "seed": ("random_seed", 10**23, "a whole number of more than 64 bits"),
    "net": ("net", {}, "has no section 'net'"),
    "subnet": ("net.1", 7, "net.1. must be a mapping"),
    "kwargs": ("net.1.kwargs", [], "net.neck.kwargs must be a mapping"),
    "chain": ("net", [], "has no section 'net'"),
    "key": ("dataset.inputsize", 3, "dataset.inputsize is not a key"),
    "part": ("dataset.test", 3, "dataset.test must be a mapping"),
    "metrics": ("evaluator.metrics", {"auc": 3}, "evaluator.metrics.auc must be a list"),
    "optimiser": ("trainer.optimizer.kwargs", {"lr": "fast"}, "trainer.optimizer.kwargs do not suit AdamW"),
    "path": ("dataset.test.meta_file", "a" * 3000, "dataset.test.meta_file must be a path"),
    "long": ("version", "a" * 5000, "a text of 5,000 characters"),
    "NUL": ("dataset.test.meta_file", "a\0b", "a NUL character"),
    "half": ("dataset.test.meta_file", "a\ud800b", "half a character"),
    "deep": ("version", deep(10_000), "more than 32 levels"),
    "many": ("version", doubled(30), "more than 1,000,000 values"),
    "cycle": ("version", cycle(), "more than 32 levels"),
    "tensor": ("version", b"bytes", "a value of type bytes"),
}


@pytest.mark.parametrize(("where", "value", "message"), ATTACKS.values(), ids=ATTACKS)
def test_what_a_file_could_not_say_is_one_line(saved: dict[str, Any], where: str, value: Any, message: str) -> None:
    config = copy.deepcopy(saved)
    node: Any = config
    *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(UserError, match=message) as caught:
        stored_config(config, "c.pth.tar", ("dataset",))
    assert str(caught.value).startswith("c.pth.tar: its configuration")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1700


@pytest.mark.parametrize("config", [5, "text", [], None, True])
def test_something_else_is_named(config: Any) -> None:
    with pytest.raises(UserError, match=r"c\.pth\.tar: its configuration cannot be used, it holds \w+ in place of a mapping"):
        stored_config(config, "c.pth.tar")
