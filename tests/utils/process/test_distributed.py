"""Several processes (gloo, on the CPU) learn and report the same as one. Run by torchrun, this file is one of the processes."""

import argparse
import csv
import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.build import build_dataset
from tests.helpers import tiny
from utils.config import load_config
from utils.evaluation.evaluate import Evaluation, compute_metrics, pack_masks
from utils.process.checkpoint import load_checkpoint, network_state, save_checkpoint
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.start import build_loader, seed_run
from utils.runs.train import build_trainer

# Without each process's own noise, and without AdamW's division, which amplifies rounding.
EXACT = (
    "net.reconstruction.kwargs.dropout=0",
    "net.reconstruction.kwargs.feature_jitter=False",
    "trainer.optimizer={type: SGD, kwargs: {lr: 1.0}}",
    "trainer.max_epoch=2",
)


def main() -> None:
    """Train as configured, and save this process's weights and losses as rank<n>.pt beside the checkpoints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    process = start_process()
    seed = seed_run(config, process)
    start_log(config.saver.save_dir, process, "train")
    loader = build_loader(build_dataset(config.dataset, "train", seed), config, "train", process, seed)
    trainer, losses = build_trainer(config, process, None, len(loader)), []
    start = {name: tensor.clone() for name, tensor in network_state(trainer.network).items()}
    trainer.criterion.register_forward_hook(lambda criterion, inputs, loss: losses.append(loss.item()))
    trainer.train(loader)
    content = {"start": start, "losses": losses, "end": network_state(trainer.network)}
    save_checkpoint(f"{config.saver.save_dir}/rank{process.rank}.pt", content)
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


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_evaluate_as_one(path: Path, processes: int) -> None:
    """There are two classes: two processes work on one each, a third on none."""
    image, pixel = {"name": "max", "kwargs": {"avgpool_size": [4, 4]}}, {"name": "pixel"}
    seven = {"auc": [image, pixel], "ap": [image, pixel], "f1max": [{"name": "mean"}, image, pixel], "aupro": [pixel]}
    metrics = f"evaluator.metrics={json.dumps(seven)}"
    tiny.evaluate(path, metrics)
    outcome = tiny.run_tool(path, "-e", "evaluator.save_dir=several", metrics, processes=processes)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.count(f"9 test images; {processes} processes") == 1
    (one, one_scores), (several, several_scores) = result(path, "result"), result(path, "several")
    assert len(one) == 3 * 8
    assert several == pytest.approx(one, abs=1e-5)
    assert len(one_scores) == 9  # an odd number: no image is left out or counted twice
    for first, second in zip(one_scores, several_scores, strict=True):
        for name in ("max", "mean"):
            assert float(second.pop(name)) == pytest.approx(float(first.pop(name)), rel=1e-5)
        assert first == second  # filename, clsname, label


@pytest.fixture(scope="module")
def trained_by_two(path: Path) -> Path:
    """The folder of the run of `path` by two processes with half the batch each."""
    folder = path.parent / "two processes"
    arguments = (*EXACT, "dataset.batch_size=2", "trainer.print_freq_step=1", f"saver.save_dir={folder}")
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
        state = torch.load(trained_by_two / f"rank{rank}.pt", weights_only=True)["end"]
        assert all(torch.equal(state[name], weights) for name, weights in saved.items())


def test_all_processes_start_with_the_same_weights_although_their_seeds_differ(trained_by_two: Path) -> None:
    first, second = (torch.load(trained_by_two / f"rank{rank}.pt", weights_only=True)["start"] for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = load_checkpoint(trained_by_two / "ckpt.pth.tar")["state_dict"]
    assert not all(torch.equal(first[name], weights) for name, weights in saved.items())


def test_a_logged_loss_is_the_mean_over_the_processes(trained_by_two: Path) -> None:
    ranks = [torch.load(trained_by_two / f"rank{rank}.pt", weights_only=True)["losses"] for rank in (0, 1)]
    logged = [float(loss) for loss in re.findall(r"step \d+/\d+  loss ([\d.]+)", (trained_by_two / "train.log").read_text())]
    assert len(logged) == len(ranks[0]) > 2
    assert logged == pytest.approx([sum(pair) / 2 for pair in zip(*ranks, strict=True)], abs=6e-5)  # of four digits
    assert any(abs(first - second) > 5e-4 for first, second in zip(*ranks, strict=True))


def test_each_process_has_random_numbers_of_its_own(trained_by_two: Path) -> None:
    first, second = load_checkpoint(trained_by_two / "ckpt.pth.tar")["random_states"]
    assert not torch.equal(first["torch"], second["torch"])
    assert not torch.equal(first["numpy"][1], second["numpy"][1])
    assert first["python"] != second["python"]


def test_shares_in_any_order_join_to_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    count = 23
    whole = Evaluation(
        size=(16, 16),
        indices=np.arange(count),
        grids=rng.random((count, 8, 8), dtype=np.float32).round(1),  # with ties
        packed_masks=pack_masks(np.pad(rng.random((count, 8, 8)) > 0.5, ((0, 0), (4, 4), (4, 4)))),
        labels=rng.integers(0, 2, count),
        losses=rng.random(count),
        clsnames=np.array(["cup", "tile"], dtype=object)[rng.integers(0, 2, count)],
        filenames=np.array([f"{index}.png" for index in range(count)], dtype=object),
    )
    shuffled = rng.permutation(count)
    columns = [field.name for field in fields(Evaluation) if field.name not in ("size", "form", "insides", "layouts", "roi")]
    shares = [
        Evaluation(whole.size, **{name: getattr(whole, name)[share] for name in columns})
        for share in np.array_split(shuffled, [5, 6, 16])
    ]
    joined = Evaluation.join(shares)
    for name in columns:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    names = [{"name": name} for name in ("mean", "std", "max", "pixel")]
    metrics = {"auc": names, "ap": names, "f1max": names, "aupro": names[-1:]}
    found, expected = (compute_metrics(evaluation, metrics).numbers() for evaluation in (joined, whole))
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


if __name__ == "__main__":
    main()
