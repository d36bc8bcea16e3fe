"""Several processes (gloo, on the CPU) say and learn what one does. Run by torchrun, this file is one of the processes."""

import argparse
import csv
import json
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import build_dataset
from tests import tiny
from utils import runs
from utils.checkpoint import load_checkpoint, network_state, save_checkpoint
from utils.config import load_config, to_plain
from utils.distributed import start_process, stop_process
from utils.evaluation import Evaluation, compute_metrics
from utils.losses import Criterion
from utils.training import Trainer, build_optimizer, build_scheduler, fit

# Without noise of its own per process, and without AdamW's division, which makes much of rounding.
EXACT = (
    "net.reconstruction.kwargs.dropout=0",
    "net.reconstruction.kwargs.feature_jitter=False",
    "trainer.optimizer={type: SGD, kwargs: {lr: 1.0}}",
    "trainer.max_epoch=2",
)


def main() -> None:
    """Train as configured, and save this process's weights as rank<n>.pt beside the checkpoints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    process = start_process()
    seed = runs.start_random(config, process)
    network = runs.build(config, process, with_pretrained=False)
    loader = runs.load(build_dataset(config.dataset, "train", seed), config, "train", process, seed)
    optimizer = build_optimizer(network, config.trainer.optimizer)
    scheduler = build_scheduler(optimizer, config.trainer.lr_scheduler)
    trainer = Trainer(network, Criterion(config.criterion), optimizer, scheduler, process)
    fit(trainer, loader, dict, "loss", to_plain(config), None, val_freq=1, save_freq=1)
    save_checkpoint(f"{config.saver.save_dir}/rank{process.rank}.pt", network_state(network))
    stop_process()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The configuration of a run trained in one process."""
    path = tiny.make(tmp_path_factory.mktemp("distributed"))
    tiny.train(path, *EXACT)
    return path


def result(path: Path, name: str) -> tuple[dict[str, float], list[dict[str, str]]]:
    """metrics.json and the lines of scores.csv in the folder `name`."""
    with open(path.parent / name / "scores.csv", newline="") as file:
        return json.loads((path.parent / name / "metrics.json").read_text()), list(csv.DictReader(file))


def test_two_processes_evaluate_as_one(path: Path) -> None:
    tiny.evaluate(path)
    outcome = tiny.run_tool(path, "-e", "evaluator.save_dir=two", processes=2)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.count("9 test images; 2 processes") == 1
    (one, one_scores), (two, two_scores) = result(path, "result"), result(path, "two")
    assert two == pytest.approx(one, abs=1e-5)
    assert len(one_scores) == 9  # odd: neither is an image left out nor one counted twice
    for first, second in zip(one_scores, two_scores, strict=True):
        for name in ("mean", "std", "max"):
            assert float(second.pop(name)) == pytest.approx(float(first.pop(name)), rel=1e-5)
        assert first == second  # filename, clsname, label


@pytest.fixture(scope="module")
def trained_by_two(path: Path) -> Path:
    """The folder of the run of `path` by two processes with half the batch each."""
    folder = path.parent / "two processes"
    arguments = (*EXACT, "dataset.batch_size=2", f"saver.save_dir={folder}")
    command = tiny.command(path, *arguments, processes=2, script=Path(__file__))
    environment = {**tiny.environment(), "PYTHONPATH": str(tiny.ROOT)}
    outcome = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return folder


def test_two_processes_learn_what_one_learns_from_twice_the_batch(path: Path, trained_by_two: Path) -> None:
    one, two = (load_checkpoint(folder / "ckpt.pth.tar") for folder in (path.parent / "checkpoints", trained_by_two))
    for name, weights in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weights, rtol=0, atol=1e-5)
    tiny.evaluate(path, f"saver.load_path={trained_by_two}/ckpt.pth.tar")


def test_all_processes_end_with_the_same_weights(trained_by_two: Path) -> None:
    saved = load_checkpoint(trained_by_two / "ckpt.pth.tar")["state_dict"]
    for rank in (0, 1):
        state = torch.load(trained_by_two / f"rank{rank}.pt", weights_only=True)
        assert all(torch.equal(state[name], weights) for name, weights in saved.items())


def test_each_process_has_random_numbers_of_its_own(trained_by_two: Path) -> None:
    first, second = load_checkpoint(trained_by_two / "ckpt.pth.tar")["random_states"]
    assert not torch.equal(first["torch"], second["torch"])
    assert not torch.equal(first["numpy"][1], second["numpy"][1])
    assert first["python"] != second["python"]


def test_shares_in_any_order_join_to_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    count = 23
    whole = Evaluation(
        indices=np.arange(count),
        maps=rng.random((count, 8, 8), dtype=np.float32).round(1),  # with ties
        masks=np.pad((rng.random((count, 4, 4)) > 0.5), ((0, 0), (2, 2), (2, 2))).astype(np.uint8),
        labels=rng.integers(0, 2, count),
        losses=rng.random(count),
        clsnames=np.array(["cup", "tile"], dtype=object)[rng.integers(0, 2, count)],
        filenames=np.array([f"{index}.png" for index in range(count)], dtype=object),
    )
    shuffled = rng.permutation(count)
    shares = [
        Evaluation(**{field.name: getattr(whole, field.name)[share] for field in fields(Evaluation)})
        for share in np.array_split(shuffled, [5, 6, 16])
    ]
    joined = Evaluation.join(shares)
    for field in fields(Evaluation):
        np.testing.assert_array_equal(getattr(joined, field.name), getattr(whole, field.name))
    names = [{"name": name, "kwargs": {"avgpool_size": None}} for name in ("mean", "std", "max", "pixel")]
    metrics = {"auc": names, "ap": names, "f1max": names, "aupro": names[-1:]}
    assert compute_metrics(joined, metrics) == pytest.approx(compute_metrics(whole, metrics), abs=1e-12, nan_ok=True)


if __name__ == "__main__":
    main()
