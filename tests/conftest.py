"""Fixtures that several files share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny


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
def said(caplog) -> Callable[[], str]:
    """The lines of the log so far."""
    caplog.set_level("INFO", "uniad")
    return lambda: "\n".join(caplog.messages)
