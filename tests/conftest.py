"""Fixtures that several files share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import tiny

# Tests compare what this process computes with what others do, often to the last bit: on the CPU. tests/test_cuda.py shows
# its processes the GPUs there were; pytest's workers inherit what is set here.
os.environ.setdefault("GPUS_TO_TEST", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The configuration of a trained and evaluated network."""
    path = tiny.make(tmp_path_factory.mktemp("trained"))
    tiny.train(path)
    tiny.evaluate(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained.parent / "checkpoints/ckpt.pth.tar"


@pytest.fixture
def log_text(caplog) -> Callable[[], str]:
    """The lines of the log so far."""
    caplog.set_level("INFO", "uniad")
    return lambda: "\n".join(caplog.messages)
