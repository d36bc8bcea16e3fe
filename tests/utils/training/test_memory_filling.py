"""Filling a memory: in one process or several, stopped by a signal, killed, and what it may start from."""

import os
import signal
from pathlib import Path

import pytest

from models.reconstructions import Memory
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.held_images import HeldImage
from tests.helpers.started_runs import result, start
from utils.errors import Interrupted, UserError
from utils.process.cli import EXIT_INTERRUPTED

OPTIONS = (tiny.MEMORY, "saver.auto_resume=True", "dataset.batch_size=2")
OFF = "dataset.feature_cache.mode=off"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


# Without a cache the pass of the memory is stopped, with one the computing of features, which is most of the time.
@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize(
    ("number", "processes", "receivers"),
    [(signal.SIGTERM, 1, 1), (signal.SIGUSR1, 1, 1), (signal.SIGTERM, 2, 2), (signal.SIGUSR1, 2, 1)],
)
def test_a_signal_during_the_pass_ends_it_with_75_and_the_same_command_fills_the_memory(
    tmp_path: Path, cache: str, number: int, processes: int, receivers: int
) -> None:
    whole, path = (tiny.make(tmp_path / name) for name in ("whole", "stopped"))
    options = (*OPTIONS, f"dataset.feature_cache.mode={cache}")
    image = HeldImage(path.parent / "data/cup/train/good/000.png")
    with start(path, *options, processes=processes) as ranks:
        image.wait_for_reader()
        for rank in ranks[-receivers:]:  # rank 0 has the held image
            rank.send_signal(number)
        image.release()
        assert [rank.code() for rank in ranks] == [EXIT_INTERRUPTED] * processes
        *_, last = ranks[0].log_text().splitlines()
    assert last.startswith(f"{signal.Signals(number).name}: stopped ")
    assert last.endswith("nothing is saved; run the same command again")
    assert not (path.parent / "checkpoints").exists()
    assert not list((path.parent).glob("feature_cache/*"))
    tiny.train(path, *options)
    tiny.train(whole, *options)
    assert_same(result(path), result(whole))


def test_a_signal_while_tokens_are_chosen_takes_effect_when_they_are_saved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, fill = tiny.make(path.parent / "whole"), Memory.fill
    tiny.train(whole, *OPTIONS)

    def signalled(memory: Memory, *arguments) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        fill(memory, *arguments)

    monkeypatch.setattr(Memory, "fill", signalled)
    with pytest.raises(Interrupted, match=r"^SIGUSR1: stopped before validation, the memory is saved in .*ckpt.pth.tar; go on"):
        tiny.train(path, *OPTIONS)
    assert not (path.parent / "result/metrics.json").exists()
    monkeypatch.setattr(Memory, "fill", None)  # it is filled
    tiny.train(path, *OPTIONS)
    assert_same(result(path), result(whole))
    assert (path.parent / "result/metrics.json").read_text() == (whole.parent / "result/metrics.json").read_text()


@pytest.mark.parametrize("kind", ["UniAD", "Memory"])
def test_a_new_run_that_is_stopped_while_features_are_computed_leaves_nothing_to_go_on_from_of_the_run_before(
    path: Path, kind: str
) -> None:
    """Slurm starts it again without --overwrite."""
    options = OPTIONS[kind != "Memory" :]
    tiny.train(path, *options, OFF)
    image = HeldImage(path.parent / "data/cup/train/good/000.png")
    with start(path, *options, "--overwrite") as (run,):
        image.wait_for_reader()
        run.send_signal(signal.SIGTERM)
        image.release()
        assert run.code() == EXIT_INTERRUPTED
    assert not list((path.parent / "checkpoints").glob("*"))


def test_a_validation_that_fails_is_all_that_a_resumed_run_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.make(path.parent / "whole")
    options = (tiny.MEMORY, "saver.auto_resume=True", OFF)
    tiny.train(whole, *options)
    image = path.parent / "data/cup/test/hole/000.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"hole/000\.png .*is not an image"):
        tiny.train(path, *options)
    tokens = result(path)["state_dict"]["module.reconstruction.tokens"]
    image.write_bytes(content)
    monkeypatch.setattr("utils.training.memory.MemoryFiller.gather", None)  # the pass is not made again
    tiny.train(path, *options)
    assert len(tokens) == 200
    assert_same(result(path), result(whole))
    assert (path.parent / "result/metrics.json").read_text() == (whole.parent / "result/metrics.json").read_text()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("coreset", ["greedy", "random"])
def test_any_number_of_processes_keeps_the_tokens_that_one_keeps(tmp_path: Path, processes: int, coreset: str) -> None:
    """Three processes have four images, three and three."""
    one, several = (tiny.make(tmp_path / name) for name in ("one", "several"))
    options = (tiny.MEMORY, f"net.reconstruction.kwargs.coreset={coreset}", "dataset.batch_size=1")
    tiny.train(one, *options)
    with start(several, *options, processes=processes) as ranks:
        assert [rank.code() for rank in ranks] == [0] * processes
    assert_same(result(several), result(one))


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_an_image_that_cannot_be_read_ends_every_process_with_its_name(path: Path, cache: str) -> None:
    (path.parent / "data/cup/train/good/000.png").write_bytes(b"no image")
    options = (tiny.MEMORY, f"dataset.feature_cache.mode={cache}", "dataset.batch_size=1")
    with start(path, *options, processes=2) as ranks:
        assert [rank.code() for rank in ranks] == ([2, 2] if cache == "auto" else [2, 1])  # 1: the other process is lost
        assert "good/000.png in image_dir" in ranks[0].log_text().splitlines()[-1]
    assert not (path.parent / "checkpoints").exists()


def test_an_image_that_cannot_be_read_is_skipped_and_a_class_without_any_is_one_line(path: Path, log_text) -> None:
    (path.parent / "data/cup/train/good/000.png").write_bytes(b"no image")
    options = (*OPTIONS, OFF, "dataset.on_bad_image=skip")
    tiny.train(path, *options)
    assert "cup/train/good/000.png" in log_text()
    assert len(result(path)["state_dict"]["module.reconstruction.tokens"]) == 200
    for image in (path.parent / "data/cup/train/good").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^no training image of cup can be read: see the log$"):
        tiny.train(path, *options, overwrite=True)


def test_a_memory_starts_from_no_other_weights(path: Path) -> None:
    tiny.train(path)
    init = f"saver.init_from={path.parent}/checkpoints/ckpt.pth.tar"
    with pytest.raises(UserError, match=r"^saver\.init_from: a memory is filled at once; tools/add_class\.py adds classes"):
        tiny.train(path, tiny.MEMORY, init, "saver.save_dir=memory")
    assert not (path.parent / "memory").exists()


def test_a_training_starts_from_no_memory(path: Path) -> None:
    tiny.train(path, tiny.MEMORY)
    init = f"saver.init_from={path.parent}/checkpoints/ckpt.pth.tar"
    with pytest.raises(UserError, match=r"ckpt\.pth\.tar: a checkpoint of another network"):
        tiny.train(path, init, "saver.save_dir=uniad")


def test_fewer_tokens_than_classes_are_one_line(path: Path) -> None:
    with pytest.raises(UserError, match=r"^1 tokens are less than one for each of 2 classes: raise max_tokens$"):
        tiny.train(path, tiny.MEMORY, "net.reconstruction.kwargs.max_tokens=1")
