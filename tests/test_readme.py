"""README.md is short and plain to follow: what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT
from utils.config import load_config

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


def test_its_first_screen_says_what_to_type_and_own_photographs_come_early() -> None:
    first_page = README.splitlines()[:60]
    assert any("make demo" in line for line in first_page)
    assert any(line.startswith("## Your own photographs") for line in first_page)


def test_every_script_it_calls_exists() -> None:
    scripts = re.findall(r"(?:sh|python) ((?:tools|experiments)/[\w/.-]+)", README)
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_every_make_target_it_calls_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_scripts_that_make_demo_runs_exist_and_make_clean_removes_what_they_write() -> None:
    rules = dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    folders = re.findall(r"sh (experiments/[\w/-]+)/train_torch\.sh 1 \$\(GPU\) --overwrite", rules["demo"])
    assert folders == ["experiments/demo/memory", "experiments/demo"]  # it ends with the table of UniAD
    for folder in folders:
        assert (ROOT / folder / "train_torch.sh").is_file()
        config = load_config(ROOT / folder / "config.yaml")
        data = config.dataset
        written = [config.saver.save_dir, config.saver.log_dir, config.evaluator.save_dir, data.feature_cache.dir]
        for path in [*written, data.image_reader.kwargs.image_dir]:
            assert re.search(rf"rm -rf .*\b{Path(path).relative_to(ROOT)}(\s|$)", rules["clean"], re.MULTILINE), path
            ignored = subprocess.run(["git", "check-ignore", "--quiet", f"{path}/x"], cwd=ROOT)
            assert ignored.returncode in (0, 128), path  # 128: no repository here


@pytest.mark.parametrize("tool", ["train_val", "predict", "calibrate", "export", "prepare_data"])
def test_every_option_it_uses_is_one_of_the_tool(tool: str) -> None:
    used = {option for line in README.splitlines() if f"tools/{tool}.py" in line for option in re.findall(r"(--\w+)", line)}
    command = [sys.executable, str(ROOT / f"tools/{tool}.py"), "--help"]
    kinds = [[*command[:-1], "folder", "--help"], command] if tool == "prepare_data" else [command]
    shown = "".join(subprocess.run(kind, capture_output=True, text=True, check=True).stdout for kind in kinds)
    assert [option for option in used if option not in shown] == []
