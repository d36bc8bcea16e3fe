"""OneCycleLR: a rate for every step, up and then down over the whole run, whatever interrupts it."""

import math
import re
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.started_runs import EPOCHS, RUN, STEPS, curve, result, start
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.process.checkpoint import load_checkpoint, save_checkpoint
from utils.process.cli import EXIT_INTERRUPTED
from utils.training.optimizer import build_optimizer, build_scheduler, step_scheduler
from utils.training.trainer import Trainer

ONE_CYCLE = "trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 0.01, pct_start: 0.3}}"
RESUMES = (ONE_CYCLE, "saver.auto_resume=True")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


def rates_of_torch(steps: int) -> list[tuple[float, float]]:
    """Rate and first beta at each of a run's steps."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.001)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, pct_start=0.3, total_steps=steps)
    rates = []
    for step in range(steps):
        group = optimizer.param_groups[0]
        rates.append((group["lr"], group["betas"][0]))
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return rates


@pytest.mark.parametrize(("epochs", "steps"), [(2, 7), (1, 5), (3, 1), (1, 1)])
def test_each_step_has_the_rate_of_torch_s_own(path: Path, epochs: int, steps: int) -> None:
    config = load_config(path, [ONE_CYCLE])
    network = nn.Linear(1, 1)
    optimizer = build_optimizer(network, config.trainer.optimizer)
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler, epochs * steps)
    trainer = Trainer(network, nn.Identity(), optimizer, scheduler, to_plain(config))
    rates = []
    for _ in range(epochs):
        for _ in range(steps):
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
            optimizer.step()
            step_scheduler(scheduler)
        trainer.finish_epoch(0.0)
    assert rates == rates_of_torch(epochs * steps)


def test_a_run_says_and_draws_the_rate_of_each_step(path: Path, log_text) -> None:
    tiny.train(path, *RUN, ONE_CYCLE, "trainer.max_epoch=2")
    rates = [rate for rate, _ in rates_of_torch(2 * STEPS)]
    assert re.findall(r" lr (\S+)", log_text()) == [f"{rate:.2e}" for rate in rates]
    steps, drawn = zip(*curve(path, "lr"), strict=True)
    assert steps == tuple(range(1, 2 * STEPS + 1))
    assert drawn == pytest.approx(rates, rel=1e-6)
    assert max(rates) == pytest.approx(0.01)


def test_a_smaller_last_batch_is_a_step_as_well(path: Path) -> None:
    tiny.train(path, ONE_CYCLE, "trainer.max_epoch=2")  # 10 images, 4 a batch
    assert result(path)["scheduler"]["total_steps"] == 2 * 3
    assert result(path)["scheduler"]["last_epoch"] == 2 * 3 - 1


def test_an_interrupted_run_ends_as_if_it_had_not_been(path: Path, tmp_path: Path) -> None:
    whole = tiny.make(tmp_path / "whole")
    tiny.train(whole, *RUN, ONE_CYCLE)
    with start(path, *RUN, ONE_CYCLE) as (run,):
        run.wait_for("epoch 2/4  step 3/10")
        run.send_signal(signal.SIGUSR1)
        assert run.code() == EXIT_INTERRUPTED
    content = result(path)
    assert content["scheduler"]["last_epoch"] == content["epoch"] * STEPS + content["running_epoch"]["images"]
    tiny.train(path, *RUN, ONE_CYCLE)
    assert_same(result(path), result(whole))
    assert curve(path, "lr") == curve(whole, "lr")


def test_a_finished_run_has_nothing_left_to_train(path: Path, log_text) -> None:
    tiny.train(path, *RESUMES)
    finished = result(path)
    tiny.train(path, *RESUMES)
    assert_same(result(path), finished)
    assert "nothing left to train: use it as it is, or start over" in log_text()  # not: train longer, which would be refused


@pytest.mark.parametrize("override", ["trainer.max_epoch=3", "dataset.batch_size=2"])
def test_a_run_of_another_length_is_not_resumed(path: Path, override: str) -> None:
    tiny.train(path, *RESUMES)
    before = result(path)
    with pytest.raises(
        UserError, match=r"ckpt\.pth\.tar: its OneCycleLR is spread over 3 steps, this run has \d: keep"
    ) as caught:
        tiny.train(path, *RESUMES, override)
    assert "\n" not in str(caught.value)
    assert "saver.init_from" in str(caught.value)
    assert_same(result(path), before)
    init_from = f"saver.init_from={path.parent}/checkpoints/ckpt.pth.tar"
    tiny.train(path, ONE_CYCLE, override, init_from, "saver.save_dir=new", "saver.auto_resume=False")
    assert (path.parent / "new/ckpt.pth.tar").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), (ONE_CYCLE,), "trained with StepLR, which OneCycleLR cannot go on from"),
        ((ONE_CYCLE,), (), "trained with OneCycleLR, which StepLR cannot go on from"),
    ],
)
def test_a_run_of_another_schedule_is_not_resumed(path: Path, first: tuple, second: tuple, message: str) -> None:
    tiny.train(path, *first)
    with pytest.raises(UserError, match=rf"ckpt\.pth\.tar: {message}; start a new run \(--overwrite .* saver\.init_from"):
        tiny.train(path, *second, "saver.auto_resume=True", "trainer.max_epoch=2")


def test_a_published_checkpoint_is_not_resumed_with_it(path: Path) -> None:
    """It has no schedule to go on with: a new one would end in the middle of its fall."""
    tiny.train(path)
    file = path.parent / "checkpoints/ckpt.pth.tar"
    content = result(path)
    save_checkpoint(file, {key: content[key] for key in ("epoch", "arch", "state_dict", "best_metric")})
    with pytest.raises(UserError, match=r"ckpt\.pth\.tar: of the published code, which has no OneCycleLR to go on with"):
        tiny.train(path, *RESUMES, "trainer.max_epoch=2")
    tiny.train(path, ONE_CYCLE, "trainer.max_epoch=2", f"saver.init_from={file}", overwrite=True)
    assert result(path)["epoch"] == 2


def test_a_run_of_another_lr_scale_is_not_resumed(path: Path) -> None:
    tiny.train(path, *RESUMES, "net.reconstruction.lr_scale=4.0")
    assert [group["lr_scale"] for group in result(path)["optimizer"]["param_groups"]] == [4.0]
    message = r"ckpt\.pth\.tar: trained with net\[\]\.lr_scale \[4\.0\], this configuration has \[2\.0\]; start a new run"
    with pytest.raises(UserError, match=message):
        tiny.train(path, *RESUMES, "net.reconstruction.lr_scale=2.0")


def test_a_checkpoint_from_before_there_was_lr_scale_is_resumed(path: Path) -> None:
    tiny.train(path)
    file = path.parent / "checkpoints/ckpt.pth.tar"
    content = load_checkpoint(file)
    for group in content["optimizer"]["param_groups"]:
        del group["lr_scale"]
    save_checkpoint(file, content)
    tiny.train(path, "saver.auto_resume=True", "trainer.max_epoch=2")
    assert result(path)["epoch"] == 2


def test_a_rise_of_a_single_step_starts_at_the_top() -> None:
    """torch's own divides by 0 where pct_start gives the rise exactly one step."""
    cfg = {"type": "OneCycleLR", "kwargs": {"max_lr": 0.01, "pct_start": 0.1}}
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.001)
    scheduler = build_scheduler(optimizer, cfg, 10)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    expected = [4e-8 + (0.01 - 4e-8) * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(10)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert cfg["kwargs"] == {"max_lr": 0.01, "pct_start": 0.1}


def test_steplr_still_acts_by_the_epoch(path: Path) -> None:
    tiny.train(path, *RUN)
    assert result(path)["scheduler"]["last_epoch"] == EPOCHS - 1


@pytest.mark.parametrize("schedule", [ONE_CYCLE, "trainer.lr_scheduler={type: StepLR, kwargs: {step_size: 1, gamma: 0.5}}"])
def test_a_subnet_s_rate_is_always_lr_scale_times_the_others(path: Path, schedule: str) -> None:
    config = load_config(path, [schedule])
    network = nn.ModuleDict({"reconstruction": nn.Linear(1, 1), "discriminator": nn.Linear(1, 1)})
    optimizer = build_optimizer(network, config.trainer.optimizer, {"reconstruction": 1.0, "discriminator": 4.0})
    plain, scaled = optimizer.param_groups
    assert [*map(id, scaled["params"])] == [*map(id, network["discriminator"].parameters())]
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler, steps=6)
    rates = []
    for _ in range(5):
        rates.append(plain["lr"])
        assert scaled["lr"] == pytest.approx(4 * plain["lr"])
        optimizer.step()
        scheduler.step()
    assert len(set(rates)) > 1
