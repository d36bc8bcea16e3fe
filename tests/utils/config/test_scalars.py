"""A key's kind decides how its value is read; a key stands once; any file gives a configuration or one line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import tiny
from utils.config import read_config
from utils.config.loading import read_yaml
from utils.config.scalars import NONE
from utils.errors import UserError

DEMO = tiny.ROOT / "experiments/demo/config.yaml"


@pytest.mark.parametrize(
    "text", ["01", "2024-05-01", "2024-13-45", "1e-4", "yes", "1_000", '"01"', "[a", "a: b", " x ", "# no comment"]
)
def test_a_text_key_takes_an_override_literally(text):
    assert read_config(DEMO, [f"dataset.class_name={text}"])["dataset"]["class_name"] == text


@settings(max_examples=60, deadline=None)
@given(st.text().filter(lambda text: text not in NONE and "\0" not in text))  # which no argument holds
def test_any_text_survives_the_way_through_an_override(text):
    assert read_config(DEMO, [f"dataset.class_name={text}"])["dataset"]["class_name"] == text


@pytest.mark.parametrize("text", ["None", "null", ""])
@pytest.mark.parametrize("key", ["dataset.class_name", "trainer.clip_max_norm", "dataset.colorjitter", "saver.resume_model"])
def test_None_and_null_mean_none(key, text):
    section, name = key.split(".")
    assert read_config(DEMO, [f"{key}={text}"])[section][name] is None


def test_paths_are_literal_and_numbers_and_lists_are_yaml():
    overrides = [
        "saver.save_dir=/2024-05-01",
        "trainer.max_epoch=0x10",
        "dataset.input_size=[32, 64]",
        "frozen_layers=[backbone, 01]",
    ]
    config = read_config(DEMO, [*overrides, "trainer.optimizer.kwargs.lr=1e-4", "dataset.feature_cache.mode=off"])
    assert config["saver"]["save_dir"] == "/2024-05-01"
    assert (config["trainer"]["max_epoch"], config["dataset"]["input_size"]) == (16, [32, 64])
    assert config["frozen_layers"] == ["backbone", "01"]
    assert config["trainer"]["optimizer"]["kwargs"]["lr"] == 1e-4
    assert config["dataset"]["feature_cache"]["mode"] == "off"


@pytest.mark.parametrize("blank", [" ", "\t", "\ufeff"])
def test_blanks_around_a_key_do_not_matter(blank):
    assert read_config(DEMO, [f"{blank}trainer.max_epoch{blank}=3"])["trainer"]["max_epoch"] == 3


@pytest.mark.parametrize("text", ["010", "-010", "0_7", "1:30"])
def test_a_number_that_only_old_yaml_reads_is_refused(tmp_path, text):
    wrong = f"trainer.max_epoch must be a whole number, not '{text}'"
    with pytest.raises(UserError, match=wrong):
        read_config(DEMO, [f"trainer.max_epoch={text}"])
    (tmp_path / "c.yaml").write_text(f"base: {DEMO}\ntrainer: {{max_epoch: {text}}}\n")
    with pytest.raises(UserError, match=wrong):
        read_config(tmp_path / "c.yaml")


def test_a_text_key_of_a_file_needs_no_quotation_marks(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"base: {DEMO}\nversion: 1.0\ndataset: {{class_name: 01}}\n")
    config = read_config(path)
    assert (config["version"], config["dataset"]["class_name"]) == ("1.0", "01")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' stands in line 1 and again in line 3"),
        ("a:\n  b:\n    - c: 1\n      c: 1\n", "'c' stands in line 3 and again in line 4"),
        ("a: {b: 1, b: 2}\n", "'b' stands in line 1 and again in line 1"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_both_lines_at_every_depth(tmp_path, text, lines):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=lines):
        read_yaml(tmp_path / "c.yaml")


def test_a_merged_key_may_be_replaced(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {x: p, y: q}\nb: {<<: *a, y: r}\n")
    assert read_yaml(tmp_path / "c.yaml")["b"] == {"x": "p", "y": "r"}


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(),
        st.text("abn:-[]{}&*!<>|#'\"~ \n0.=", max_size=40).map(str.encode),
        st.just(b"a: &a [*a]"),
        st.just(b"[" * 5000),
    )
)
def test_any_bytes_as_a_configuration_give_one_line(tmp_path_factory, content):
    path: Path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_long_path_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"save_dir must be a path|a name of more than 255 bytes"):
        read_config(tiny.make(tmp_path), ["saver.save_dir=" + "a\udca5" * 200])
