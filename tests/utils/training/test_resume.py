"""A run that is stopped or killed anywhere goes on as if nothing had been, and is stopped in good order by a signal."""

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets.build import build_dataset
from models import build_network
from models.losses import Criterion
from tests.helpers import tiny
from tests.helpers import vis_runs as vis
from tests.helpers.comparing import assert_same
from tests.helpers.started_runs import EPOCHS, RUN, STEPS, curve, events, result, start
from utils.config import load_config, to_plain
from utils.errors import Interrupted, UserError
from utils.process.checkpoint import BEST, LAST, PREVIOUS, load_checkpoint, save_checkpoint
from utils.process.cli import EXIT_INTERRUPTED
from utils.process.distributed import Process
from utils.process.seeding import seed_everything
from utils.runs.start import build_loader, seed_run
from utils.training.optimizer import build_optimizer, build_scheduler
from utils.training.trainer import Trainer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """The last checkpoint of a run in one process that nobody interrupted."""
    path = tiny.make(tmp_path_factory.mktemp("whole"))
    tiny.train(path, *RUN)
    return result(path)


# --- real processes ---


def test_a_killed_run_goes_on_from_the_last_step_saved_and_ends_the_same(path: Path, whole: dict, log_text) -> None:
    with start(path, *RUN, "saver.save_freq_step=4") as (run,):
        run.wait_for("epoch 3/4  step 5/10")  # saved at steps 4, 8, ... of all: the last time after step 4 of this epoch
        run.kill()
        assert run.code() == -signal.SIGKILL
    content = result(path)
    epoch, images = content["epoch"], content["running_epoch"]["images"]
    assert (epoch * STEPS + images) % 4 == 0
    assert images
    tiny.train(path, *RUN)
    assert f"after epoch {epoch} of 4 and {images} images of the next" in log_text()
    assert f"epoch {epoch + 1}/4  step {images}/10" not in log_text()
    assert f"epoch {epoch + 1}/4  step {images + 1}/10" in log_text()
    assert_same(result(path), whole)
    steps = [step for step, _ in curve(path, "loss_train")]
    assert steps == list(range(1, EPOCHS * STEPS + 1))


def test_sigterm_to_the_whole_group_saves_after_the_step_and_asks_to_be_started_again(path: Path, whole: dict) -> None:
    with start(path, *RUN, "dataset.workers=2") as (run,):  # the workers get it too
        run.wait_for("epoch 2/4  step 3/10")
        os.killpg(run.process.pid, signal.SIGTERM)
        os.killpg(run.process.pid, signal.SIGTERM)  # a second one changes nothing
        assert run.code() == EXIT_INTERRUPTED
        *_, saved, last = run.log_text().splitlines()
    assert "saved ckpt.pth.tar" in saved
    content = result(path)
    epoch, images = content["epoch"], content["running_epoch"]["images"]
    assert epoch * STEPS + images >= 13
    assert last == (
        f"SIGTERM: stopped at epoch {epoch + 1} after step {images} of 10, saved in {path.parent}/checkpoints/{LAST}; "
        "run the same command again to go on (without --overwrite)"
    )
    tiny.train(path, *RUN, "dataset.workers=2")
    assert_same(result(path), whole)


def test_two_processes_stop_together_and_go_on_as_if_they_had_not(tmp_path: Path) -> None:
    """SIGUSR1 to one of them, then SIGKILL to both, against a run without interruption."""
    paths = [tiny.make(tmp_path / name) for name in ("whole", "parts")]
    with start(paths[0], *RUN, processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
    often = (*RUN, "saver.save_freq_step=2")
    with start(paths[1], *often, processes=2) as ranks:
        ranks[0].wait_for("epoch 1/4  step 2/5")
        ranks[1].send_signal(signal.SIGUSR1)
        assert [rank.code() for rank in ranks] == [EXIT_INTERRUPTED] * 2
        assert "SIGUSR1: stopped at epoch " in ranks[0].log_text()
    with start(paths[1], *often, processes=2) as ranks:
        ranks[0].wait_for("epoch 3/4  step 3/5")
        for rank in ranks:
            rank.kill()
    with start(paths[1], *often, processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
        assert re.search(r"resumed from .* images of the next", ranks[0].log_text())
    assert_same(result(paths[1]), result(paths[0]))
    assert_same(result(paths[1], BEST), result(paths[0], BEST))


def test_two_processes_have_the_loss_curve_of_one_with_the_joined_batch(tmp_path: Path) -> None:
    """With AdamW and clipping as configured; noise that each process draws for itself is off."""
    exact = (
        "net.reconstruction.kwargs.dropout=0",
        "net.reconstruction.kwargs.feature_jitter=False",
        "trainer.max_epoch=7",
        "trainer.val_freq_epoch=7",
        "trainer.tb_freq_step=1",
    )
    one, two = (tiny.make(tmp_path / name) for name in ("one", "two"))
    tiny.train(one, *exact, "dataset.batch_size=4")
    with start(two, *exact, "dataset.batch_size=2", processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
    expected, losses = (curve(path, "loss_train") for path in (one, two))
    assert len(expected) == 21
    assert expected[-1][1] < 0.9 * expected[0][1]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_a_backbone_that_is_not_frozen_trains_in_two_processes(path: Path) -> None:
    with start(path, "frozen_layers=[]", processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
    trained = result(path)["state_dict"]
    seed_everything(7)
    before = build_network(load_config(path).net).state_dict()
    assert (trained["module.backbone._conv_stem.weight"] != before["backbone._conv_stem.weight"]).any()
    assert_same(trained["module.backbone._conv_head.weight"], before["backbone._conv_head.weight"])  # never run


def test_a_vis_decoder_stops_and_goes_on_as_well(tmp_path: Path) -> None:
    uninterrupted, path = (vis.make(tmp_path / name) for name in ("whole", "parts"))
    options = ("trainer.max_epoch=8", "trainer.print_freq_step=1", "dataset.batch_size=1")
    with start(path, "--class_name=cup", *options, script=vis.TOOL) as (run,):
        run.wait_for("epoch 2/8  step 2/5")
        run.send_signal(signal.SIGUSR1)
        assert run.code() == EXIT_INTERRUPTED
    contents = [vis.train(path, "cup", *options) for path in (uninterrupted, path)]
    for content in contents:
        del content["config"]
    assert_same(*contents)


def test_an_error_in_a_worker_ends_the_run(path: Path) -> None:
    """Workers do not obey signals of others, but still leave with the process that they work for."""
    (path.parent / "data/cup/train/good/003.png").write_bytes(b"no image")
    with start(path, *RUN, "dataset.workers=2") as (run,):
        assert run.code() == 2


# --- within a process: a loss or a validation that sends the signal ---


class Signalling(Criterion):
    """The configured loss; at its `at`-th call this process gets the signal."""

    def __init__(self, cfg: list[dict], at: int, number: int) -> None:
        super().__init__(cfg)
        self.left, self.number = at, number

    def forward(self, outputs: dict[str, Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return super().forward(outputs)


def train_with(
    path: Path,
    *overrides: str,
    at: int = 0,
    number: int = signal.SIGTERM,
    validate: Callable[[], dict[str, float]] = dict,
) -> Trainer:
    """Train without test images, with a signal at step `at`; returns the trainer, also of a run that was interrupted."""
    config = load_config(path, [*RUN, *overrides])
    seed = seed_run(config, Process())
    network = build_network(config.net)
    optimizer = build_optimizer(network, config.trainer.optimizer)
    criterion = Signalling(config.criterion, at, number)
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler)
    trainer = Trainer(network, criterion, optimizer, scheduler, to_plain(config))
    loader = build_loader(build_dataset(config.dataset, "train", seed), config, "train", Process(), seed)
    trainer.train(loader, validate)
    return trainer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_step_end_and_leaves_others_their_handlers(path: Path, number: int) -> None:
    mine = signal.signal(number, handler := lambda *_: None)
    try:
        with pytest.raises(Interrupted, match=rf"{signal.Signals(number).name}: stopped at epoch 2 after step 3 of 10"):
            train_with(path, at=13, number=number)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, mine)
    content = result(path)
    assert content["running_epoch"]["images"] == 3
    assert {int(state["step"]) for state in content["optimizer"]["state"].values()} == {13}


def test_a_signal_during_validation_waits_for_its_end(path: Path) -> None:
    validated = []

    def validate() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        validated.append(0.5)
        return {"score": 0.5}

    with pytest.raises(Interrupted, match="stopped at epoch 2 after step 0"):
        train_with(path, validate=validate)
    assert validated == [0.5]
    assert result(path)["history"][0]["score"] == 0.5


def test_after_the_last_epoch_there_is_nothing_to_interrupt(path: Path) -> None:
    trainer = train_with(path, "trainer.max_epoch=1", validate=lambda: os.kill(os.getpid(), signal.SIGTERM) or {})
    assert trainer.epoch == result(path)["epoch"] == 1


def test_a_second_ctrl_c_leaves_at_once(path: Path) -> None:
    def validate() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests were started with nohup and &
    try:
        with pytest.raises(KeyboardInterrupt):
            train_with(path, validate=validate)
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_an_ignored_signal_stays_ignored(path: Path) -> None:
    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert train_with(path, "trainer.max_epoch=2", at=3, number=signal.SIGHUP).epoch == 2
    finally:
        signal.signal(signal.SIGHUP, inherited)


def test_training_in_a_thread_goes_without_handlers(path: Path) -> None:
    thread = threading.Thread(target=train_with, args=(path, "trainer.max_epoch=1"))
    thread.start()
    thread.join()
    assert result(path)["epoch"] == 1


def test_a_run_killed_while_validating_validates_when_it_goes_on(path: Path, whole: dict, log_text) -> None:
    image = path.parent / "data/cup/test/hole/000.png"
    good = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match="is not an image"):
        tiny.train(path, *RUN, "dataset.feature_cache.mode=off")
    content = result(path)
    assert (content["epoch"], content["running_epoch"]["images"]) == (1, 10)
    image.write_bytes(good)
    tiny.train(path, *RUN)
    assert "and 10 images of the next" in log_text()
    assert log_text().count("epoch 2/4  step") == STEPS  # those before the failure
    assert_same(result(path), whole)
    assert [step for step, _ in curve(path, "loss_train")] == list(range(1, EPOCHS * STEPS + 1))
    assert [step for step, _ in curve(path, "test/mean_max_auc")] == [2 * STEPS, 4 * STEPS]


def test_with_other_batches_an_epoch_goes_on_at_the_whole_step_before(path: Path, log_text) -> None:
    with pytest.raises(Interrupted):
        train_with(path, at=13)
    before = result(path)["running_epoch"]
    tiny.train(path, *RUN, "dataset.batch_size=2", "trainer.max_epoch=2")
    assert "the batch size differs: after 3 images, go on at step 2 of 5" in log_text()
    assert re.findall(r"epoch 2/2  step (\d)/5  loss", log_text()) == ["2", "3", "4", "5"]
    losses = [loss for step, loss in curve(path, "loss_train") if step > 6]
    expected = (before["loss_sums"][0] / 3 + sum(losses)) / 5
    assert result(path)["history"][1]["loss"] == pytest.approx(expected, rel=1e-5)


# --- which checkpoint it goes on from ---


@pytest.fixture
def stopped(path: Path) -> Path:
    """The configuration of a run of which the last checkpoint is of epoch 2 and the one before of its end."""
    tiny.train(path, *RUN, "trainer.max_epoch=2")
    return path


def flip(file: Path) -> None:
    """Change a byte in the middle of the weights."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(stopped: Path, whole: dict, log_text) -> None:
    last = stopped.parent / "checkpoints" / LAST
    flip(last)
    tiny.train(stopped, *RUN)
    assert f"{last}: damaged or not a checkpoint: going on from {PREVIOUS}" in log_text()
    assert_same(result(stopped), whole)
    assert result(stopped, PREVIOUS)["running_epoch"]["images"] == 10  # the damaged one never took its place


def test_a_run_killed_between_two_renames_goes_on(stopped: Path, whole: dict, log_text) -> None:
    last = stopped.parent / "checkpoints" / LAST
    last.unlink()
    tiny.train(stopped, *RUN)
    assert f"{last}: it is not there: going on from {PREVIOUS}" in log_text()
    assert_same(result(stopped), whole)


def test_two_damaged_checkpoints_are_an_error_that_names_both(stopped: Path, log_text) -> None:
    folder = stopped.parent / "checkpoints"
    for name in (LAST, PREVIOUS):
        flip(folder / name)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match=rf"/{LAST}: damaged.*/{PREVIOUS}: damaged.*resume_model, or start over") as caught:
        tiny.train(stopped, *RUN)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    tiny.train(stopped, *RUN, "saver.auto_resume=False", f"saver.resume_model={folder}/{BEST}", "trainer.max_epoch=3")
    assert f"{BEST} holds no state of the optimiser, as only the last checkpoint does: it starts new" in log_text()


def test_only_the_last_two_checkpoints_hold_the_state_of_the_optimiser(stopped: Path) -> None:
    folder = stopped.parent / "checkpoints"
    held = {file.name: bool(load_checkpoint(file)["optimizer"]["state"]) for file in folder.iterdir()}
    assert held == {LAST: True, PREVIOUS: True, BEST: False}


def test_a_checkpoint_that_was_named_has_no_substitute(stopped: Path) -> None:
    last = stopped.parent / "checkpoints" / LAST
    flip(last)
    for run in (lambda *args: tiny.train(stopped, *RUN, *args), lambda *args: tiny.evaluate(stopped, *args)):
        with pytest.raises(UserError, match=rf"{LAST}: damaged"):
            run("saver.auto_resume=False", f"saver.resume_model={last}", f"saver.load_path={last}")


def test_a_checkpoint_of_before_epochs_were_cut_goes_on(stopped: Path, whole: dict) -> None:
    last = stopped.parent / "checkpoints" / LAST
    content = load_checkpoint(last)
    del content["running_epoch"]
    save_checkpoint(last, content)
    tiny.train(stopped, *RUN)
    assert_same(result(stopped), whole)


# --- TensorBoard ---


def test_a_run_that_goes_on_from_an_older_checkpoint_draws_its_curves_over_the_others(path: Path) -> None:
    every_epoch = (*RUN, "trainer.val_freq_epoch=1")
    tiny.train(path, *every_epoch, "trainer.max_epoch=3", "saver.always_save=True")
    older = f"saver.resume_model={path.parent}/checkpoints/ckpt_1.pth.tar"
    tiny.train(path, *every_epoch, "trainer.max_epoch=2", "saver.auto_resume=False", older)
    assert [step for step, _ in curve(path, "loss_train")] == list(range(1, 2 * STEPS + 1))
    assert [step for step, _ in curve(path, "test/mean_max_auc")] == [STEPS, 2 * STEPS]


def test_a_run_that_starts_anew_leaves_no_old_curve(path: Path) -> None:
    tiny.train(path, *RUN, "trainer.max_epoch=2")
    tiny.train(path, *RUN, "trainer.max_epoch=1", overwrite=True)
    files = list((path.parent / "log/tensorboard").iterdir())
    steps = Counter(event.step for file in files for event in events(file) if event.summary.value[:1])
    assert set(steps) == set(range(1, STEPS + 1))
