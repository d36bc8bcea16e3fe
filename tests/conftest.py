"""Fixtures that several files share."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import tiny
from utils.evaluation.calibration import Calibration, Threshold, file_hash, save_calibration
from utils.predict.predictor import Predictor

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


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium, one for all tests."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if absent := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"{' and '.join(absent)} not installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def calibrated(trained: Path, checkpoint: Path) -> Path:
    """The checkpoint, with thresholds in the middle of its test images."""
    paths = sorted((trained.parent / "data").glob("*/test/*/*.png"))
    scores, maps = Predictor.from_checkpoint(checkpoint)(paths)
    level = float(np.quantile(maps, 0.95))
    threshold = Threshold(float(np.median(scores)), len(scores), (0.1, 0.9), level, tuple(sorted(scores)))
    of = ("max", 0.5, checkpoint.name, file_hash(checkpoint), 1, "made up")
    save_calibration(Calibration(*of, threshold, {"cup": threshold}, 0.001, float(np.median(maps))), checkpoint)
    return checkpoint
