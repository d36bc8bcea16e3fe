"""trainer.max_step ends a run after so many steps; dataset.drop_last leaves out a last batch that is not full."""

import signal
from pathlib import Path

import pytest

from datasets.build import build_dataloader, build_dataset
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.started_runs import RUN, curve, result, start
from utils.config import load_config
from utils.errors import UserError
from utils.training.trainer import Trainer

RESUMES = ("saver.auto_resume=True", "trainer.print_freq_step=1", "trainer.val_freq_epoch=1000")
WARMUP = "trainer.lr_scheduler={type: WarmupCosineLR, kwargs: {warmup_steps: 2, final_lr: 0.0001}}"
# Runs of the ten images in batches of four.
LENGTHS = {
    "within the second epoch": ("trainer.max_step=5", "trainer.max_epoch=null"),
    "within the first epoch": ("trainer.max_step=2", "trainer.max_epoch=null"),
    "a schedule by the step": ("trainer.max_step=5", "trainer.max_epoch=null", WARMUP),
    "full batches only": ("trainer.max_epoch=2", "dataset.train.drop_last=True"),
    "both": ("trainer.max_step=3", "trainer.max_epoch=null", "dataset.train.drop_last=True"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


def steps_of(content: dict) -> int:
    return int(next(iter(content["optimizer"]["state"].values()))["step"])


@pytest.mark.parametrize(
    ("max_epoch", "max_step", "drops", "steps", "epochs"),
    [
        (2, 5, False, 5, 2),
        (2, 9, False, 6, 2),
        (2, 6, False, 6, 2),
        ("null", 4, False, 4, 2),
        ("null", 1, False, 1, 1),
        (1, "null", False, 3, 1),
        (1, "null", True, 2, 1),
        ("null", 3, True, 3, 2),
    ],
)
def test_the_run_ends_after_max_step_or_max_epoch_whichever_comes_first(
    path: Path, log_text, max_epoch: int | str, max_step: int | str, drops: bool, steps: int, epochs: int
) -> None:
    limits = (f"trainer.max_epoch={max_epoch}", f"trainer.max_step={max_step}", f"dataset.drop_last={drops}")
    tiny.train(path, *limits, "trainer.print_freq_step=1", "trainer.tb_freq_step=1")
    content = result(path)
    assert steps_of(content) == steps
    assert content["epoch"] == len(content["history"]) == epochs
    assert "mean_pixel_auc" in content["history"][-1]  # validated, wherever the run ends
    losses = [loss for _, loss in curve(path, "loss_train")]
    assert len(losses) == steps
    an_epoch = 2 if drops else 3
    last = losses[(epochs - 1) * an_epoch :]
    assert content["history"][-1]["loss"] == pytest.approx(sum(last) / len(last), rel=1e-5)  # of the steps that were made
    assert f"epoch {epochs}/{epochs}  step {len(last)}/{an_epoch}" in log_text()


def test_a_line_and_checkpoints_come_at_the_last_step_also_within_an_epoch(path: Path, log_text) -> None:
    tiny.train(path, "trainer.max_step=5", "trainer.max_epoch=null", "trainer.print_freq_step=100")
    assert "epoch 2/2  step 2/3" in log_text()
    assert "ckpt.pth.tar is the result" in log_text()


@pytest.mark.parametrize("length", LENGTHS)
def test_a_run_that_ends_after_any_step_goes_on_as_if_it_had_not(
    length: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is saved; the run is broken off before the next one."""
    whole, parts = (tiny.make(tmp_path / name) for name in ("whole", "parts"))
    options = (*RESUMES, *LENGTHS[length], "saver.save_freq_step=1")
    tiny.train(whole, *options)
    train_step = Trainer.train_step

    def one_step(trainer: Trainer, batch: dict) -> float:
        monkeypatch.setattr(Trainer, "train_step", broken_off)
        return train_step(trainer, batch)

    def broken_off(trainer: Trainer, batch: dict) -> float:
        raise KeyboardInterrupt

    for _ in range(steps_of(result(whole)) - 1):
        monkeypatch.setattr(Trainer, "train_step", one_step)
        with pytest.raises(KeyboardInterrupt):
            tiny.train(parts, *options)
    monkeypatch.setattr(Trainer, "train_step", one_step)
    tiny.train(parts, *options)
    assert_same(result(parts), result(whole))


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, path = (tiny.make(tmp_path / name) for name in ("whole", "killed"))
    options = (*RUN, "trainer.max_step=25", "saver.save_freq_step=4")
    tiny.train(whole, *options)
    with start(path, *options) as (run,):
        run.wait_for("epoch 3/3  step 2/10")
        run.kill()
        assert run.code() == -signal.SIGKILL
    tiny.train(path, *options)
    assert_same(result(path), result(whole))
    assert steps_of(result(path)) == 25


def test_a_validation_that_fails_after_the_last_step_is_all_that_a_resumed_run_does(path: Path, log_text) -> None:
    options = (*RESUMES, "trainer.max_step=5", "trainer.max_epoch=null", "dataset.feature_cache.mode=off")
    image = path.parent / "data/cup/test/hole/000.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"hole/000\.png .*is not an image"):
        tiny.train(path, *options)
    assert steps_of(result(path)) == 5
    image.write_bytes(content)
    tiny.train(path, *options)
    assert log_text().count("epoch 2/2  step 2/3") == 1
    assert steps_of(result(path)) == 5
    assert "mean_pixel_auc" in result(path)["history"][-1]


@pytest.mark.parametrize(("length", "hint"), [("trainer.max_step=5", False), ("trainer.max_step=9", True)])
def test_a_finished_run_names_max_epoch_only_where_a_larger_one_would_help(path: Path, log_text, length: str, hint: bool) -> None:
    for _ in range(2):
        tiny.train(path, "saver.auto_resume=True", "trainer.max_epoch=2", length)
    assert "nothing left to train: use it as it is, " in log_text()
    assert ("train longer with trainer.max_epoch" in log_text()) == hint


@pytest.mark.parametrize(
    ("drops", "batch_size", "world_size", "sizes"),
    [
        (False, 4, 1, [4, 4, 2]),
        (True, 4, 1, [4, 4]),
        (True, 5, 1, [5, 5]),
        (True, 16, 1, [10]),  # else an epoch would be empty
        (True, 2, 2, [2, 2]),
        (True, 8, 2, [5]),
    ],
)
def test_drop_last_leaves_out_a_batch_that_is_not_full_unless_it_is_the_only_one(
    path: Path, drops: bool, batch_size: int, world_size: int, sizes: list[int]
) -> None:
    cfg = load_config(path, [f"dataset.train.drop_last={drops}", f"dataset.batch_size={batch_size}"]).dataset
    for rank in range(world_size):
        loader = build_dataloader(build_dataset(cfg, "train"), cfg, "train", rank, world_size)
        assert [len(batch["filename"]) for batch in loader] == sizes
        assert len(loader) == len(sizes)


def test_drop_last_never_leaves_out_a_test_image(path: Path) -> None:
    cfg = load_config(path, ["dataset.drop_last=True"]).dataset
    loader = build_dataloader(build_dataset(cfg, "test"), cfg, "test")
    assert sum(len(batch["filename"]) for batch in loader) == 9
