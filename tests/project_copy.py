"""The project copied elsewhere with a tiny experiment in it, for the tests that start it by the scripts as a person does."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests import tiny

CODE = ("datasets", "models", "tools", "utils")
SCRIPTS = ("train_torch.sh", "eval_torch.sh", "train.sh", "eval.sh")


def copy_project(root: Path) -> Path:
    """Copy the code and the demo's scripts to `root`; returns its folder experiments/tiny."""
    for folder in CODE:
        shutil.copytree(tiny.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    experiment = root / "experiments" / "tiny"
    tiny.make(experiment)
    for name in ("launch.sh", "torchrun.py"):
        shutil.copy(tiny.ROOT / "experiments" / name, root / "experiments")
    for name in SCRIPTS:
        shutil.copy(tiny.ROOT / "experiments" / "demo" / name, experiment)
    return experiment


def sh(script: str | Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`sh script arguments`, typed in the folder `cwd` with this Python and with `environment` added."""
    env = {**tiny.environment(), "PYTHON": sys.executable, **environment}
    return subprocess.run(["sh", str(script), *arguments], cwd=cwd, env=env, timeout=120, capture_output=True, text=True)
