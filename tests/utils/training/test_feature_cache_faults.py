"""What can happen to a feature cache and while it is built: it is built again, or there is a clear line; no wrong features."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.cached import FeatureDataset
from tests.helpers import tiny
from tests.helpers.feature_runs import FILES, Run, touch
from utils.errors import UserError
from utils.process.distributed import start_process, stop_process
from utils.training import feature_cache


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """A forked process has none of its parent's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Its `messages` are what was logged."""
    caplog.set_level("INFO", "uniad")
    return caplog


# --- the files ---


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def fill(path: Path, byte: bytes) -> None:
    path.write_bytes(byte * path.stat().st_size)


DAMAGES: dict[str, Any] = {
    "features.bin is short": lambda folder: truncate(folder / "features.bin"),
    "features.bin is of zeros": lambda folder: fill(folder / "features.bin", b"\0"),
    "masks.bin is of ones": lambda folder: fill(folder / "masks.bin", b"\xff"),
    "sums.bin is of zeros": lambda folder: fill(folder / "sums.bin", b"\0"),
    "masks.bin is short": lambda folder: truncate(folder / "masks.bin"),
    "sizes.bin is missing": lambda folder: (folder / "sizes.bin").unlink(),
    "key.json is missing": lambda folder: (folder / "key.json").unlink(),
    "key.json is short": lambda folder: truncate(folder / "key.json"),
    "key.json is another": lambda folder: (folder / "key.json").write_text(json.dumps({"format": 0})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(path: Path, log: pytest.LogCaptureFixture, damage: str) -> None:
    Run(path).open()
    run = Run(path)
    (folder,) = run.folders()
    DAMAGES[damage](folder)
    log.clear()
    data = run.open()
    assert run.computed == 10
    assert log.messages[0] == f"feature cache: {folder} is damaged, it is built again"
    assert len(log.messages) == 2
    assert torch.equal(run.features(data), run.features(run.images("train")))
    assert run.folders() == [folder]


def test_one_changed_row_of_many_is_found_on_demand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SAMPLE", 0)  # no row is sampled
    Run(path).open()
    run = Run(path)
    file = run.folders()[0] / "features.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run.open()
    assert run.computed == 0
    run.cfg["dataset"]["feature_cache"]["check"] = "all"
    data = run.open()
    assert run.computed == 10
    assert torch.equal(run.features(data), run.features(run.images("train")))


def test_a_dir_that_cannot_be_one_turns_it_off(path: Path, log: pytest.LogCaptureFixture) -> None:
    run = Run(path)
    run.dir.write_text("a file")
    assert not isinstance(run.open(), FeatureDataset)
    assert log.messages == [f"feature cache: off for the training images: {run.dir}: File exists"]


def test_a_full_disk_turns_it_off_and_nothing_is_left(path: Path, log: pytest.LogCaptureFixture) -> None:
    run = Run(path)
    run.dir.mkdir()
    size = ("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(run.dir))
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(size, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        data = run.open()
        assert not isinstance(data, FeatureDataset)
        assert run.computed == 0
        assert log.messages == [f"feature cache: off for the training images: {run.dir}: No space left on device"]
        assert run.folders() == []
    finally:
        subprocess.run(["umount", str(run.dir)], check=True)


# --- while it is built ---


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left(path: Path) -> None:
    (path.parent / "data/tile/train/good/003.png").write_bytes(b"no image")
    run = Run(path)
    with pytest.raises(UserError, match=r"^tile/train/good/003\.png .*train\.json"):
        run.open()
    assert run.folders() == []


def test_an_image_changed_meanwhile_is_an_error(path: Path) -> None:
    run = Run(path)
    run.network.neck.register_forward_hook(lambda *_: touch(path.parent / "data/cup/train/good/000.png"))
    with pytest.raises(UserError, match="images were changed while their features were computed"):
        run.open()
    assert run.folders() == []


def start(path: Path, during_batch: Callable[[Run], None] = lambda run: None, **environment: str) -> BaseProcess:
    """Another process that opens the cache and saves what it gives as features-<pid>.pt, and how much it computed."""

    def work() -> None:
        os.environ.update(environment)
        run = Run(path, "dataset.batch_size=1")  # so that the batches have one shape, however the images are shared out
        run.network.neck.register_forward_hook(lambda *_: during_batch(run))
        try:
            data = run.open(process=start_process())
        except UserError as error:
            (path.parent / f"error-{os.getpid()}").write_text(str(error))
            raise SystemExit(2) from None
        assert isinstance(data, FeatureDataset)
        (path.parent / f"computed-{os.getpid()}").write_text(str(run.computed))
        torch.save(run.features(data), path.parent / f"features-{os.getpid()}.pt")
        stop_process()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def wait_until(happened: Callable[[], bool]) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.01)
    raise TimeoutError("the other process does not come")


def ranks(path: Path) -> list[BaseProcess]:
    """Two processes of one run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(path, RANK=str(rank), **together) for rank in range(2)]


def check_saved(path: Path, processes: list[BaseProcess]) -> None:
    """Every process ended well, with the features of the images."""
    run = Run(path, "dataset.batch_size=1")
    right = run.features(run.images("train"))
    for process in processes:
        process.join()
        assert process.exitcode == 0
        assert torch.equal(torch.load(path.parent / f"features-{process.pid}.pt"), right)


def test_a_run_killed_while_building_leaves_nothing_that_is_used(path: Path) -> None:
    def kill(run: Run) -> None:
        if run.computed == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    process = start(path, kill)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = Run(path)
    (leftover,) = run.folders()
    assert leftover.name.startswith(".train-")
    assert any((leftover / "features.bin").read_bytes())
    assert isinstance(run.open("test"), FeatureDataset)
    assert not leftover.exists()  # whatever is built next removes it
    run.computed = 0
    data = run.open()
    assert run.computed == 10
    assert torch.equal(run.features(data), run.features(run.images("train")))
    assert [sorted(file.name for file in folder.iterdir()) for folder in run.folders()] == [FILES, FILES]


def test_a_build_of_another_run_that_is_still_at_work_is_left_alone(path: Path) -> None:
    def hold(run: Run) -> None:
        (path.parent / "begun").touch()
        wait_until(lambda: (path.parent / "go on").exists())

    process = start(path, hold)
    wait_until(lambda: (path.parent / "begun").exists())
    Run(path).open()
    (path.parent / "go on").touch()
    check_saved(path, [process])
    assert [folder.name[0] for folder in Run(path).folders()] == ["t"]


def test_two_runs_that_build_at_once_both_have_the_right_features(path: Path) -> None:
    def meet(run: Run) -> None:
        """Wait until both have begun."""
        (path.parent / f"begun-{os.getpid()}").touch()
        wait_until(lambda: len(list(path.parent.glob("begun-*"))) == 2)

    processes = [start(path, meet) for _ in range(2)]
    check_saved(path, processes)
    assert [(path.parent / f"computed-{process.pid}").read_text() for process in processes] == ["10", "10"]
    (folder,) = Run(path).folders()
    assert sorted(file.name for file in folder.iterdir()) == FILES


def test_an_image_that_one_of_two_processes_cannot_read_is_named_by_both(path: Path) -> None:
    (path.parent / "data/cup/train/good/001.png").write_bytes(b"no image")
    processes = ranks(path)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [2, 2]
    assert all("cup/train/good/001.png" in (path.parent / f"error-{process.pid}").read_text() for process in processes)
    assert Run(path).folders() == []


def test_two_processes_of_a_run_build_together_what_one_does(path: Path) -> None:
    run = Run(path, "dataset.batch_size=1")
    run.open()
    (one,) = run.folders()
    content = {name: (one / name).read_bytes() for name in FILES}
    shutil.rmtree(one)
    processes = ranks(path)
    check_saved(path, processes)
    assert [(path.parent / f"computed-{process.pid}").read_text() for process in processes] == ["5", "5"]
    (two,) = run.folders()
    assert two == one
    assert {name: (two / name).read_bytes() for name in FILES} == content
