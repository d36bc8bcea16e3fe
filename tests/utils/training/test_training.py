"""Training: what an epoch does, what a resumed run owes an uninterrupted one, and what a run starts from."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.build import build_dataloader, build_dataset
from models import build_network
from models.dropout import Masks
from models.losses import Criterion
from models.network import Network
from models.reconstructions import UniAD
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.process.checkpoint import BEST, LAST, PREVIOUS, load_checkpoint, network_state, save_checkpoint
from utils.process.distributed import Process
from utils.runs.start import seed_run
from utils.runs.train import build_trainer
from utils.training.acceleration import compile_trained
from utils.training.optimizer import build_optimizer, build_scheduler
from utils.training.trainer import Trainer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


def train(path: Path, name: str, *overrides: str, **options) -> dict[str, Any]:
    """Train into the folder `name`, with augmentation; the last checkpoint's content without its configuration."""
    save_dir = path.parent / name
    tiny.train(path, f"saver.save_dir={save_dir}", "dataset.train.hflip=True", *overrides, **options)
    content = load_checkpoint(save_dir / "ckpt.pth.tar")
    del content["config"]
    return content


# --- reproducing and resuming ---


def test_the_same_run_twice_is_equal_to_the_last_bit(path: Path) -> None:
    first = train(path, "first", "trainer.max_epoch=2")
    torch.rand(7)  # whatever happened in this process before
    assert_same(train(path, "again", "trainer.max_epoch=2"), first)
    assert_same(train(path, "workers", "trainer.max_epoch=2", "dataset.workers=2"), first)
    fewer_evaluations = train(path, "fewer", "trainer.max_epoch=2", "trainer.val_freq_epoch=2")
    assert_same(fewer_evaluations["state_dict"], first["state_dict"])
    other_seed, key = train(path, "seed", "trainer.max_epoch=2", "random_seed=8"), "module.reconstruction.input_proj.weight"
    assert not torch.equal(other_seed["state_dict"][key], first["state_dict"][key])


def test_a_resumed_run_ends_as_an_uninterrupted_one(path: Path, log_text) -> None:
    whole = train(path, "whole", "trainer.max_epoch=4")
    train(path, "parts", "trainer.max_epoch=2")
    resumed = train(path, "parts", "trainer.max_epoch=4", "saver.auto_resume=True")
    assert "after epoch 2 of 4" in log_text()
    assert_same(resumed, whole)


def test_training_without_a_test_list_works_and_says_what_is_missing(path: Path, log_text) -> None:
    path.write_text(path.read_text().replace("  test: {meta_file: data/test.json}\n", ""))
    assert train(path, "run")["epoch"] == 1
    assert "no list of test images (dataset.test.meta_file)" in log_text()
    assert (path.parent / "run/ckpt_best.pth.tar").is_file()
    with pytest.raises(UserError, match=r"dataset\.test\.meta_file is missing"):
        tiny.evaluate(path, f"saver.load_path={path.parent}/run/ckpt.pth.tar")


def test_an_image_that_is_good_in_training_and_defective_in_test_is_named(path: Path) -> None:
    defective = next(line for line in (path.parent / "data/test.json").read_text().splitlines() if '"label": 1' in line)
    with open(path.parent / "data/train.json", "a") as file:
        file.write(json.dumps({**json.loads(defective), "label": 0, "maskname": None}) + "\n")
    name = re.escape(json.loads(defective)["filename"])
    with pytest.raises(UserError, match=rf"^{name} is good in .*train\.json and defective in .*test\.json: correct one"):
        train(path, "run")
    assert not list((path.parent / "run").glob("*.pth.tar"))


def test_without_defective_test_images_one_line_takes_the_place_of_the_table(path: Path, log_text) -> None:
    lines = (path.parent / "data/test.json").read_text().splitlines(keepends=True)
    (path.parent / "data/test.json").write_text("".join(line for line in lines if '"label": 0' in line))
    train(path, "run")
    assert "no metric has a number: images of one label only" in log_text()
    assert " nan" not in log_text().split("no metric has a number")[0].splitlines()[-1]


def test_a_class_that_was_added_is_named_when_the_run_goes_on(path: Path, log_text) -> None:
    lists = {name: (path.parent / f"data/{name}.json").read_text() for name in ("train", "test")}
    for name, text in lists.items():
        (path.parent / f"data/{name}.json").write_text(
            "".join(line for line in text.splitlines(keepends=True) if "tile" not in line)
        )
    train(path, "run")
    for name, text in lists.items():
        (path.parent / f"data/{name}.json").write_text(text)
    train(path, "run", "saver.auto_resume=True")
    assert "the run so far has not seen tile" in log_text()
    tiny.evaluate(path, f"saver.load_path={path.parent}/run/ckpt.pth.tar")
    assert "ckpt.pth.tar has not seen tile" in log_text()


def test_the_best_metric_survives_a_resume(path: Path) -> None:
    train(path, "run")
    last, best = path.parent / "run/ckpt.pth.tar", path.parent / "run/ckpt_best.pth.tar"
    save_checkpoint(last, {**load_checkpoint(last), "best_metric": 2.0})  # better than any later one
    resumed = train(path, "run", "trainer.max_epoch=2", "saver.auto_resume=True")
    assert (resumed["epoch"], resumed["best_metric"]) == (2, 2.0)
    assert load_checkpoint(best)["epoch"] == 1


def test_of_equal_metrics_the_later_checkpoint_is_the_best(path: Path) -> None:
    config = load_config(path)
    trainer = build_trainer(config, Process(), None, steps=3, best_by="mean_pixel_auc")
    for metric, is_best in ((0.5, True), (0.5, True), (0.4, False), (0.5, True)):
        trainer.history.append({"epoch": len(trainer.history) + 1, "mean_pixel_auc": metric})
        assert (BEST in trainer.due_checkpoints(True, True)) == is_best
    by_loss = build_trainer(config, Process(), None, steps=3)
    for loss, is_best in ((2.0, True), (2.0, True), (3.0, False)):
        by_loss.history.append({"loss": loss})
        assert (BEST in by_loss.due_checkpoints(True, True)) == is_best


def test_the_best_by_one_metric_is_not_held_against_another(path: Path, log_text) -> None:
    tiny.train(path)
    last = path.parent / "checkpoints" / LAST
    save_checkpoint(last, {**load_checkpoint(last), "best_metric": 2.0})
    tiny.train(path, "saver.auto_resume=True", "trainer.max_epoch=2", "evaluator.key_metric=mean_std_auc")
    resumed = load_checkpoint(last)
    assert resumed["best_metric"] == resumed["history"][-1]["mean_std_auc"]
    assert "its best checkpoint is by mean_pixel_auc; from here on the best is by mean_std_auc" in log_text()


def test_the_last_checkpoint_comes_before_resume_model(path: Path, log_text) -> None:
    train(path, "run", "trainer.max_epoch=2", "saver.always_save=True")
    older = f"saver.resume_model={path.parent}/run/ckpt_1.pth.tar"
    train(path, "run", "trainer.max_epoch=3", "saver.auto_resume=True", older)
    assert "ckpt.pth.tar after epoch 2 of 3" in log_text()
    train(path, "elsewhere", "trainer.max_epoch=2", "saver.auto_resume=True", older)
    train(path, "run", "trainer.max_epoch=2", older)
    assert log_text().count("ckpt_1.pth.tar after epoch 1 of 2") == 2


def test_init_from_takes_the_weights_and_nothing_else(path: Path) -> None:
    source = train(path, "source", "trainer.max_epoch=2")
    init = f"saver.init_from={path.parent}/source/ckpt.pth.tar"
    still = train(path, "still", "trainer.optimizer.kwargs.lr=0.0", init)
    assert_same(still["state_dict"], source["state_dict"])
    assert still["epoch"] == 1
    assert {int(state["step"]) for state in still["optimizer"]["state"].values()} == {3}
    assert still["scheduler"]["last_epoch"] == 0


@pytest.mark.parametrize("key", ["resume_model", "init_from"])
def test_a_checkpoint_to_start_from_must_be_there(path: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"absent\.pth\.tar: there is no such checkpoint"):
        train(path, "run", f"saver.{key}=absent.pth.tar")
    assert not (path.parent / "run").exists()


def test_a_run_of_another_optimiser_is_not_resumed(path: Path) -> None:
    train(path, "run")
    sgd = "trainer.optimizer={type: SGD, kwargs: {lr: 0.1}}"
    with pytest.raises(UserError, match=r"ckpt\.pth\.tar: trained with AdamW, .* SGD"):
        train(path, "run", "trainer.max_epoch=2", "saver.auto_resume=True", sgd)


def test_a_resume_says_that_a_changed_learning_rate_is_not_taken(path: Path, log_text) -> None:
    train(path, "run")
    train(path, "run", "trainer.max_epoch=2", "saver.auto_resume=True")
    assert "its own trainer" not in log_text()
    resumed = train(path, "run", "trainer.max_epoch=3", "saver.auto_resume=True", "trainer.optimizer.kwargs.lr=0.5")
    assert "its own trainer.optimizer" in log_text()
    assert resumed["optimizer"]["param_groups"][0]["lr"] < 0.5


def test_an_evaluation_that_fails_loses_no_epoch(path: Path) -> None:
    (path.parent / "data/cup/test/hole/000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"hole/000\.png .*is not an image"):
        train(path, "run", "dataset.feature_cache.mode=off")  # which would have found it before the first epoch
    content = load_checkpoint(path.parent / "run/ckpt.pth.tar")
    assert (content["epoch"], content["running_epoch"]["images"]) == (0, 10)  # all its images, but not what comes after them


def test_nothing_to_train_is_an_error(path: Path) -> None:
    with pytest.raises(UserError, match="every subnet is frozen"):
        train(path, "run", "frozen_layers=[backbone, neck, reconstruction]")


def test_overwrite_and_resume_model_exclude_each_other(path: Path) -> None:
    train(path, "run")
    with pytest.raises(UserError, match=r"--overwrite starts over and saver\.resume_model goes on"):
        train(path, "run", f"saver.resume_model={path.parent}/run/ckpt.pth.tar", overwrite=True)


# --- never from old weights unasked ---


def test_training_twice_is_refused_and_changes_nothing(path: Path) -> None:
    train(path, "run")
    before = {file: file.read_bytes() for file in (path.parent / "run").iterdir()}
    with pytest.raises(UserError, match=r"holds checkpoints of an earlier run: .*auto_resume.*--overwrite"):
        train(path, "run", "trainer.max_epoch=2")
    assert {file: file.read_bytes() for file in (path.parent / "run").iterdir()} == before


def test_overwrite_starts_anew_and_load_path_is_not_read(path: Path) -> None:
    fresh = train(path, "fresh")
    train(path, "run", "trainer.max_epoch=2", "saver.always_save=True")
    load_path = f"saver.load_path={path.parent}/run/ckpt.pth.tar"
    anew = train(path, "run", load_path, "saver.auto_resume=True", overwrite=True)
    assert_same(anew, fresh)
    assert {file.name for file in (path.parent / "run").iterdir()} == {LAST, PREVIOUS, BEST}
    assert load_checkpoint(path.parent / "run" / PREVIOUS)["epoch"] == 0
    (path.parent / "garbage").write_text("no checkpoint")
    assert_same(train(path, "other", f"saver.load_path={path.parent}/garbage"), fresh)


def test_overwrite_keeps_the_old_run_until_the_new_one_can_start(path: Path) -> None:
    source = train(path, "run")
    with pytest.raises(UserError, match="absent"):
        train(path, "run", "dataset.train.meta_file=absent.json", overwrite=True)
    assert_same(load_checkpoint(path.parent / "run/ckpt.pth.tar")["state_dict"], source["state_dict"])
    init = f"saver.init_from={path.parent}/run/ckpt.pth.tar"
    still = train(path, "run", init, "trainer.optimizer.kwargs.lr=0.0", overwrite=True)
    assert_same(still["state_dict"], source["state_dict"])


def test_a_finished_run_has_nothing_left_to_train(path: Path, log_text) -> None:
    finished = train(path, "run")
    assert_same(train(path, "run", "saver.auto_resume=True"), finished)
    assert "nothing left to train: use it as it is, train longer with trainer.max_epoch, or" in log_text()


# --- an epoch ---


Batches = list[dict[str, torch.Tensor]]


class Watched(nn.Module):
    """The configured loss; it notes the images of every batch by filename."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.batches: Batches = []

    def forward(self, outputs: dict[str, Any]) -> torch.Tensor:
        self.batches.append(dict(zip(outputs["filename"], outputs["image"], strict=True)))
        return self.criterion(outputs)


def one_epoch(path: Path, *overrides: str, epoch: int = 0) -> tuple[Network, dict[str, torch.Tensor], Batches]:
    """Train an epoch; the network, its state before, and the images of every batch by filename."""
    torch.manual_seed(0)
    config = load_config(path, overrides)
    network = build_network(config.net)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loader = build_dataloader(build_dataset(config.dataset, "train"), config.dataset, "train")
    optimizer = build_optimizer(network, config.trainer.optimizer)
    criterion = Watched(Criterion(config.criterion))
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler)
    trainer = Trainer(network, criterion, optimizer, scheduler, to_plain(config))
    trainer.epoch = epoch
    trainer.train_epoch(loader)
    return network, before, criterion.batches


def test_an_epoch_takes_every_image_once_and_keeps_the_last_smaller_batch(path: Path) -> None:
    orders = []
    for epoch in (0, 1):
        *_, batches = one_epoch(path, epoch=epoch)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        orders.append([name for batch in batches for name in batch])
    listed = [json.loads(line)["filename"] for line in (path.parent / "data/train.json").read_text().splitlines()]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(listed)
    assert orders[0] != orders[1]


def test_a_notebook_trains_epoch_after_epoch_as_a_run_does(path: Path) -> None:
    """With the calls in Trainer's docstring, and nothing written."""
    whole = train(path, "whole", "trainer.max_epoch=2", "dataset.feature_cache.mode=off")
    config = to_plain(load_config(path, ["dataset.train.hflip=True"]))
    seed = seed_run(load_config(path), Process())
    network = build_network(config["net"])
    optimizer = build_optimizer(network, config["trainer"]["optimizer"])
    scheduler = build_scheduler(optimizer, config["trainer"]["lr_scheduler"])
    loader = build_dataloader(build_dataset(config["dataset"], "train", seed), config["dataset"], "train", seed=seed)
    before = sorted(path.parent.iterdir())
    trainer = Trainer(network, Criterion(config["criterion"]), optimizer, scheduler, config)
    losses = []
    for _ in range(2):
        losses.append(trainer.train_epoch(loader))
        trainer.finish_epoch(losses[-1])
    assert losses == [numbers["loss"] for numbers in whole["history"]]
    assert_same(network_state(network), whole["state_dict"])
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("augments", [True, False])
def test_augmentation_is_drawn_again_every_epoch(path: Path, augments: bool) -> None:
    epochs = []
    for epoch in (0, 1):
        *_, batches = one_epoch(path, f"dataset.train.hflip={augments}", epoch=epoch)
        epochs.append({name: image for batch in batches for name, image in batch.items()})
    assert any(not torch.equal(image, epochs[1][name]) for name, image in epochs[0].items()) == augments


@pytest.mark.parametrize("clip_max_norm", [1e-3, None])
def test_clipping_bounds_the_step(path: Path, clip_max_norm: float | None) -> None:
    sgd = "trainer.optimizer={type: SGD, kwargs: {lr: 1.0}}"
    clip = f"trainer.clip_max_norm={'null' if clip_max_norm is None else clip_max_norm}"
    network, before, _ = one_epoch(path, sgd, clip, "dataset.batch_size=10")
    steps = [(tensor - before[name]).flatten() for name, tensor in network.named_parameters()]
    norm = torch.cat(steps).norm().item()
    assert norm == pytest.approx(clip_max_norm, rel=1e-3) if clip_max_norm else norm > 1e-2


@pytest.mark.parametrize("read_at", ["trainer.print_freq_step=4", "saver.save_freq_step=4", "trainer.print_freq_step=50"])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_files_also_where_it_is_read_later(
    path: Path, read_at: str, log_text
) -> None:
    explosive = ("trainer.optimizer={type: SGD, kwargs: {lr: 1e30}}", "trainer.clip_max_norm=null", "dataset.batch_size=2")
    *_, batches = one_epoch(path, "dataset.batch_size=2")
    files = ", ".join(list(batches[1]))
    with pytest.raises(UserError, match=rf"the loss is (nan|inf) at epoch 1, step 2; files: {files}$"):
        train(path, "run", "dataset.train.hflip=False", "random_seed=0", *explosive, read_at)
    assert not (path.parent / "run").exists()
    assert "step 4/5" not in log_text()


class WaitsForNothing(TorchDispatchMode):
    """Raises where a number is brought from a device to Python, for which a GPU would have to finish its work."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["UniAD", "Dinomaly"])
def test_a_step_waits_for_no_number(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the seed of dropout's bits, which only a CPU draws."""
    jitter = {"UniAD": ["net.reconstruction.kwargs.feature_jitter.prob=0.5"]}
    train_step = Trainer.train_step

    def step(*args: Any) -> torch.Tensor:
        with WaitsForNothing():
            return train_step(*args)

    monkeypatch.setattr(Trainer, "train_step", step)
    masks = {"lowest_kept": 0, "scale": 1.0, "generator": np.random.SFC64(0)}
    monkeypatch.setattr(Masks, "__init__", lambda self, p: vars(self).update(masks))
    one_epoch(path, *tiny.RECONSTRUCTIONS[name], *jitter.get(name, ()))


def test_the_frozen_backbone_stays_as_it_is(path: Path) -> None:
    network, before, _ = one_epoch(path)
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name, _ in network.reconstruction.named_parameters(prefix="reconstruction")}
    assert any("running_mean" in name for name in after if name.startswith("backbone."))
    network.train(True)
    assert network.reconstruction.training
    assert not any(module.training for module in network.backbone.modules())
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    torch.nn.ModuleList([network]).train()  # as a wrapper does
    assert not network.backbone.training


def test_a_backbone_that_is_not_frozen_trains(path: Path) -> None:
    network, before, _ = one_epoch(path, "frozen_layers=[]")
    after = network.state_dict()
    assert not torch.equal(after["backbone._conv_stem.weight"], before["backbone._conv_stem.weight"])
    assert not torch.equal(after["backbone._bn0.running_mean"], before["backbone._bn0.running_mean"])


def test_the_optimiser_holds_what_trains_in_the_networks_order(path: Path) -> None:
    config = load_config(path)
    network = build_network(config.net)
    (group,) = build_optimizer(network, config.trainer.optimizer).param_groups
    expected = [parameter for name, parameter in network.named_parameters() if name.startswith("reconstruction.")]
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]
    assert (group["lr"], *group["betas"], group["weight_decay"]) == (0.001, 0.9, 0.999, 0.0001)


# --- the schedule ---


def published_schedule(epochs: int, step_size: int) -> list[float]:
    """Learning rates of a loop that calls scheduler.step(epoch) at each epoch's end, as the published one does."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.001)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma=0.1)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the argument is deprecated
            scheduler.step(epoch)
    return rates


@pytest.mark.parametrize("step_size", [1, 2, 3])
def test_the_schedule_is_the_published_one(path: Path, step_size: int) -> None:
    config = load_config(path, [f"trainer.lr_scheduler.kwargs.step_size={step_size}"])
    network = nn.Linear(1, 1)
    optimizer = build_optimizer(network, config.trainer.optimizer)
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler)
    trainer = Trainer(network, nn.Identity(), optimizer, scheduler, to_plain(config))
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        trainer.finish_epoch(0.0)
    assert rates == pytest.approx(published_schedule(8, step_size), rel=1e-9)
    late = [1] * (step_size + 1) + [0.1] * step_size + [0.01] * step_size + [0.001] * step_size + [0.0001] * step_size
    assert rates[: len(late)] == pytest.approx([0.001 * factor for factor in late[:8]], rel=1e-9)


def test_a_run_follows_the_schedule(path: Path, log_text) -> None:
    train(path, "run", "trainer.max_epoch=6", "trainer.val_freq_epoch=6")
    rates = re.findall(r"step 3/3 .* lr (\S+)", log_text())
    assert rates == ["1.00e-03"] * 3 + ["1.00e-04"] * 2 + ["1.00e-05"]


def test_bfloat16_trains_to_nearly_the_same_loss_with_float32_weights(path: Path) -> None:
    overrides = ("trainer.max_epoch=2", "net.reconstruction.kwargs.dropout=0.0")
    runs = {name: train(path, name, f"trainer.precision={name}", *overrides) for name in ("float32", "bfloat16")}
    losses = {name: [numbers["loss"] for numbers in run["history"]] for name, run in runs.items()}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert {tensor.dtype for tensor in runs["bfloat16"]["state_dict"].values()} == {torch.float32, torch.int64}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++ is not installed")
def test_a_compiled_model_has_the_same_loss_gradients_and_state_dict() -> None:
    torch.manual_seed(0)
    settings = {"hidden_dim": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8}
    model = UniAD([6], [8], [4, 4], False, False, dropout=0.0, **settings)
    batch = {"feature_align": torch.randn(2, 6, 4, 4)}

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        loss = (model(batch)["feature_rec"] - batch["feature_align"]).square().mean()
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    names, eager = list(model.state_dict()), step()
    compile_trained(nn.Sequential(nn.Identity(), nn.Identity(), model), torch.device("cpu"))
    torch.testing.assert_close(step(), eager, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert list(model.state_dict()) == names


def test_compiling_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"trainer.compile needs a C\+\+ compiler: install g\+\+"):
        compile_trained(nn.Sequential(nn.Identity()), torch.device("cpu"))
