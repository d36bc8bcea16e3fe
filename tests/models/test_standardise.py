"""Standardise: each channel less its mean, over its deviation, of everything seen in training."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import build_network
from models.necks import MFCN, Standardise
from tests.helpers import tiny
from utils.config import load_config
from utils.process.distributed import share_weights, start_process, stop_process
from utils.training.acceleration import distribute

SIZES = (2, 3, 4, 1, 5, 2)  # of the batches of two processes, in turn


def batches(*sizes: int, channels: int = 3) -> list[Tensor]:
    """A batch of 4 x 5 places for each size, whose channels differ in mean and deviation, and which differ from each other."""
    rng = np.random.default_rng(0)
    scale, shift = np.float32([0.01, 1, 100])[:channels, None, None], np.float32([5, 0, -300])[:channels, None, None]
    return [
        torch.from_numpy((rng.standard_normal((size, channels, 4, 5), np.float32) + rng.normal()) * scale + shift)
        for size in sizes
    ]


def expected(seen: list[Tensor], features: Tensor) -> np.ndarray:
    """`features` by mean and deviation of all that was seen, in float64."""
    whole = np.concatenate([batch.numpy() for batch in seen]).astype(np.float64)
    mean, deviation = whole.mean(axis=(0, 2, 3)), whole.std(axis=(0, 2, 3))
    return (features.numpy() - mean[:, None, None]) / deviation[:, None, None]


def test_each_batch_is_standardised_by_all_so_far_and_itself() -> None:
    module, seen = Standardise(3), []
    for batch in batches(4, 1, 7, 2):
        seen.append(batch)
        np.testing.assert_allclose(module(batch).numpy(), expected(seen, batch), rtol=0, atol=2e-3)
    assert module.count == 14 * 20


def test_many_batches_are_as_exact_as_one() -> None:
    module, seen = Standardise(3), batches(*[2] * 500)
    for batch in seen:
        module(batch)
    np.testing.assert_allclose(module.eval()(seen[0]).numpy(), expected(seen, seen[0]), rtol=0, atol=5e-3)


def test_only_the_first_of_a_batch_count_where_so_many_are_named() -> None:
    first, second = batches(5, 4)
    module = Standardise(3)
    module(first, seen=2)
    out = module(second, seen=3)
    np.testing.assert_allclose(out.numpy(), expected([first[:2], second[:3]], second), rtol=0, atol=2e-3)


def test_the_whole_has_mean_0_and_deviation_1() -> None:
    (batch,) = batches(50)
    out = Standardise(3)(batch).double()
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.std(dim=(0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-3)


def test_in_evaluation_it_stands_still() -> None:
    first, second = batches(4, 3)
    module = Standardise(3)
    module(first)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    out = module.eval()(second)
    np.testing.assert_allclose(out.numpy(), expected([first], second), rtol=0, atol=2e-3)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("constant", [0.0, 0.1, -0.7123, 3.3, 1e4])
def test_a_channel_that_never_changed_is_0_whatever_it_becomes(constant: float) -> None:
    """Resizing leaves a constant so only but for rounding, which is no deviation to divide by."""
    neck = MFCN([2], [2], [16], [8], standardise=True)
    rng = np.random.default_rng(0)
    for size in (2, 3, 1):
        feature = torch.from_numpy(rng.standard_normal((size, 2, 7, 7), np.float32))
        feature[:, 1] = constant
        aligned = neck({"features": [feature]})["feature_align"]
        assert not aligned[:, 1].any()
        assert aligned[:, 0].any()
    feature[:, 1] += 1
    assert not neck.eval()({"features": [feature]})["feature_align"][:, 1].any()


def test_a_small_deviation_is_still_one() -> None:
    """The first channel's is 0.002 of its mean."""
    (batch,) = batches(4)
    assert Standardise(3)(batch)[:, 0].abs().max() > 1


def test_half_precision_comes_out_as_float32() -> None:
    module = Standardise(3)
    batch = batches(4)[0].bfloat16()
    out = module(batch)
    assert out.dtype == module.mean.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected([batch.float()], batch.float()), rtol=0, atol=2e-3)


def test_no_gradient_reaches_the_statistics_and_the_features_get_theirs() -> None:
    (batch,) = batches(4)
    batch.requires_grad_()
    module = Standardise(3)
    module(batch).sum().backward()
    scale = 1 / np.concatenate([batch.detach().numpy()]).std(axis=(0, 2, 3))
    np.testing.assert_allclose(batch.grad.numpy(), np.broadcast_to(scale[:, None, None], batch.shape), rtol=1e-4)
    assert not module.mean.requires_grad
    assert not list(module.parameters())


def test_the_statistics_go_with_the_state_dict() -> None:
    first, second = batches(4, 3)
    module, other = Standardise(3), Standardise(3)
    module(first)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(second), module(second))
    assert other.count == module.count == 7 * 20


# --- in MFCN ---


def test_the_neck_standardises_what_it_would_give_without() -> None:
    rng = np.random.default_rng(0)
    features = [torch.from_numpy(rng.standard_normal((4, n, s, s), np.float32) * 3 + 1) for n, s in ((2, 14), (3, 7))]
    plain, neck = (MFCN([2, 3], [5], [8, 16], [8], **more) for more in ({}, {"standardise": True}))
    aligned = plain({"features": features})["feature_align"]
    standardised = neck({"features": features})["feature_align"]
    np.testing.assert_allclose(standardised.numpy(), expected([aligned], aligned), rtol=0, atol=1e-4)
    assert list(neck.state_dict()) == ["standardise.count", "standardise.mean", "standardise.variance"]


def test_without_the_key_the_network_has_neither_keys_nor_other_values(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    networks = []
    for overrides in ((), ("net.neck.kwargs.standardise=False",), ("net.neck.kwargs.standardise=True",)):
        torch.manual_seed(0)
        networks.append(build_network(load_config(path, overrides).net).eval())
    absent, off, on = networks
    assert [name for name in on.state_dict() if name not in absent.state_dict()] == [
        "neck.standardise.count",
        "neck.standardise.mean",
        "neck.standardise.variance",
    ]
    assert list(off.state_dict()) == list(absent.state_dict())
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32))
    with torch.no_grad():
        outputs = [network({"image": image}) for network in (absent, off)]
    assert torch.equal(outputs[0]["pred"], outputs[1]["pred"])
    joined = MFCN([16, 24, 40], [80], [2, 4, 8], [8])({"features": outputs[0]["features"]})["feature_align"]
    assert torch.equal(outputs[0]["feature_align"], joined)


def test_it_gathers_in_training_though_the_backbone_is_frozen_and_not_in_evaluation(tmp_path: Path) -> None:
    network = build_network(load_config(tiny.make(tmp_path), ["net.neck.kwargs.standardise=True"]).net)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32))
    network.train()({"image": image})
    assert network.neck.standardise.count == 2 * 8 * 8
    network.eval()({"image": image})
    assert network.neck.standardise.count == 2 * 8 * 8


def test_two_processes_go_on_from_the_same_statistics(tmp_path: Path) -> None:
    """Each step starts with those of rank 0, so both processes' features are in the same units."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(tmp_path)]
    environment = {**tiny.environment(), "PYTHONPATH": str(tiny.ROOT)}
    outcome = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    shares = [batches(*SIZES)[rank::2] for rank in (0, 1)]
    for state, seen in zip(states, (shares[0], [*shares[0][:-1], shares[1][-1]]), strict=True):
        module = Standardise(3)
        for batch in seen:
            module(batch)
        assert all(torch.equal(state["step"][name], value) for name, value in module.state_dict().items())
    assert all(torch.equal(states[1]["end"][name], value) for name, value in states[0]["step"].items())


def main(folder: Path) -> None:
    """One of two processes: a step for each of its batches; its statistics then, and when weights were shared."""
    process = start_process()
    network = nn.Sequential(OrderedDict(neck=Standardise(3), head=nn.Conv2d(3, 1, 1)))
    model = distribute(network, process)
    for batch in batches(*SIZES)[process.rank :: 2]:
        model(batch).sum().backward()
    states = {"step": {name: value.clone() for name, value in network.neck.state_dict().items()}}
    share_weights(network, process)
    torch.save({**states, "end": network.neck.state_dict()}, folder / f"rank{process.rank}.pt")
    stop_process()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
