"""A copy of the project with a tiny experiment, for tests that start the scripts as a user does."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers import tiny

CODE = ("datasets", "models", "tools", "utils")
SCRIPTS = ("train_torch.sh", "eval_torch.sh", "train.sh", "eval.sh", "train_sbatch.sh")
VIS_SCRIPTS = {  # of each visualising tool: the script for one class on this machine, and for every class through Slurm
    "train_vis_decoder": ("train_torch.sh", "train.sh"),
    "vis_recon": ("vis_recon_torch.sh", "vis_recon.sh"),
    "vis_query": ("vis_query_torch.sh", "vis_query.sh"),
}

# Takes the place of a program, and prints how it was called, one item per line.
TELLER = """#!/bin/sh
printf '%s\\n' "program=${0##*/}" "gpus=${CUDA_VISIBLE_DEVICES-unset}" "threads=${OMP_NUM_THREADS-unset}" "$@"
"""


def copy_project(root: Path) -> Path:
    """Copy the code and scripts to `root`; returns its folder experiments/tiny.

    The folders of the visualising tools, such as experiments/vis_recon, hold their scripts but no configuration.
    """
    for folder in CODE:
        shutil.copytree(tiny.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    experiment = root / "experiments" / "tiny"
    tiny.make(experiment)
    for name in ("launch.sh", "train.sbatch"):
        shutil.copy(tiny.ROOT / "experiments" / name, root / "experiments")
    for name in SCRIPTS:
        shutil.copy(tiny.ROOT / "experiments" / "demo" / name, experiment)
    for folder in vis_folders(tiny.ROOT):
        copied = root / folder.relative_to(tiny.ROOT)
        copied.mkdir(parents=True)
        for script in folder.glob("*.sh"):
            shutil.copy(script, copied)
    return experiment


def vis_folders(root: Path) -> list[Path]:
    """The folders of a project that hold the scripts of the visualising tools."""
    return [root / "experiments" / parent / tool for parent in ("", "demo") for tool in VIS_SCRIPTS]


def make_program(path: Path, text: str = TELLER) -> str:
    """Write an executable; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def allow_ctrl_c() -> None:
    """For Popen's preexec_fn: a program in the foreground gets SIGINT, which a test run started with `nohup ... &` ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sh(script: str | Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `sh script arguments` in the folder `cwd`, with this Python and with `environment` added."""
    env = {**tiny.environment(), "PYTHON": sys.executable, **environment}
    return subprocess.run(["sh", str(script), *arguments], cwd=cwd, env=env, timeout=120, capture_output=True, text=True)
