"""StableAdamW and WarmupCosineLR do what their plain definitions say, by parameter group, and go on after a checkpoint."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils import optim
from utils.optim import StableAdamW, WarmupCosineLR
from utils.training.optimizer import acts_each_step, build_optimizer, build_scheduler, step_scheduler

KWARGS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-10, "weight_decay": 0.1, "amsgrad": True}
SHAPES = [(5, 7), (3,), ()]


def parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    """They jump at step 3, where the second moment expects small ones."""
    random = torch.Generator().manual_seed(step)
    return [(100.0 if step == 3 else 0.1) * torch.randn(shape, generator=random) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for tensor, gradient in zip(tensors, gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()


def plain_stable_adamw(
    weights: np.ndarray,
    gradients: list[np.ndarray],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    clip_threshold: float = 1.0,
) -> np.ndarray:
    """One tensor, number by number, in double precision."""
    numbers = weights.astype(float).ravel()
    mean, square, largest = np.zeros_like(numbers), np.zeros_like(numbers), np.zeros_like(numbers)
    for step, gradient in enumerate((g.astype(float).ravel() for g in gradients), start=1):
        denominators = np.empty_like(numbers)
        for i, g in enumerate(gradient):
            numbers[i] -= lr * weight_decay * numbers[i]
            mean[i] = betas[0] * mean[i] + (1 - betas[0]) * g
            square[i] = betas[1] * square[i] + (1 - betas[1]) * g * g
            largest[i] = max(largest[i], square[i])
            denominators[i] = math.sqrt((largest if amsgrad else square)[i]) / math.sqrt(1 - betas[1] ** step) + eps
        excess = math.sqrt(sum((g / d) ** 2 for g, d in zip(gradient, denominators, strict=True)) / numbers.size)
        rate = lr / (1 - betas[0] ** step) / max(1.0, excess / clip_threshold)
        for i in range(numbers.size):
            numbers[i] -= rate * mean[i] / denominators[i]
    return numbers.reshape(weights.shape)


@pytest.mark.parametrize("change", [{}, {"amsgrad": False}, {"clip_threshold": 0.3}, {"clip_threshold": 1e9}, {"eps": 0.01}])
def test_steps_equal_a_plain_loop(change: dict[str, Any]) -> None:
    tensors = parameters()
    start = [tensor.detach().numpy().copy() for tensor in tensors]
    train(StableAdamW(tensors, **KWARGS | change), tensors, range(7))
    for number, tensor in enumerate(tensors):
        seen = [gradients(step)[number].numpy() for step in range(7)]
        expected = plain_stable_adamw(start[number], seen, **KWARGS | change)
        np.testing.assert_allclose(tensor.detach(), expected, rtol=1e-5, atol=1e-6)


def test_without_clipping_it_is_torch_s_adamw() -> None:
    ours, theirs = parameters(), parameters()
    train(StableAdamW(ours, **KWARGS | {"amsgrad": False, "clip_threshold": 1e9}), ours, range(7))
    train(torch.optim.AdamW(theirs, **KWARGS | {"amsgrad": False}), theirs, range(7))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_each_tensor_has_its_own_count_of_steps() -> None:
    """One that got a gradient late is at its first step then."""
    late, first = parameters(), parameters()
    optimizer = StableAdamW(late, **KWARGS)
    late[0].grad = torch.ones(SHAPES[0])
    optimizer.step()
    train(optimizer, late, range(1))
    train(StableAdamW(first, **KWARGS), first, range(1))
    assert torch.equal(late[1], first[1])
    assert not torch.equal(late[0], first[0])


def test_all_tensors_at_once_as_on_a_gpu_equal_one_by_one() -> None:
    single, together = parameters(), parameters()
    optimizer = StableAdamW(together, **KWARGS)
    train(StableAdamW(single, **KWARGS), single, range(4))
    train(optimizer, together, range(3))
    for tensor, gradient in zip(together, gradients(3), strict=True):
        tensor.grad = gradient
        optimizer.state[tensor]["step"] += 1
    with torch.no_grad():
        optimizer.update(together, **optimizer.param_groups[0])
    torch.testing.assert_close(together, single)


def test_a_resumed_optimiser_goes_on_to_the_bit() -> None:
    whole, parts = parameters(), parameters()
    train(StableAdamW(whole, **KWARGS), whole, range(7))
    optimizer = StableAdamW(parts, **KWARGS)
    train(optimizer, parts, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    resumed = StableAdamW(parts, lr=1.0)
    resumed.load_state_dict(state)
    train(resumed, parts, range(3, 7))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert {tensor.dtype for item in state["state"].values() for tensor in item.values() if torch.is_tensor(tensor)} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "lr -1.0 must be at least 0"),
        ({"eps": -1.0}, "eps -1.0 must be at least 0"),
        ({"weight_decay": math.nan}, "weight_decay nan must be at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas \(0.9, 1.0\) must be two numbers, at least 0 and less than 1"),
        ({"betas": [0.9]}, r"betas \[0.9\] must be two numbers"),
        ({"clip_threshold": 0}, "clip_threshold 0 must be above 0"),
    ],
)
def test_a_number_out_of_range_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        StableAdamW(parameters(), **KWARGS | change)
    assert "\n" not in str(error.value)


# ---- the schedule


def network() -> nn.ModuleDict:
    return nn.ModuleDict({"slow": nn.Linear(2, 2), "fast": nn.Linear(2, 2)})


def rates(scheduler: WarmupCosineLR, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        step_scheduler(scheduler)
    return found


def expected_rates(total: int, warmup: int, top: float, final: float) -> np.ndarray:
    cosine = final + 0.5 * (top - final) * (1 + np.cos(np.pi * np.arange(total - warmup) / (total - warmup)))
    return np.concatenate([np.linspace(0, top, warmup), cosine])


@pytest.mark.parametrize(("total", "warmup"), [(12, 4), (5, 0), (5, 1), (3, 2), (1, 0)])
def test_each_step_has_its_rate_by_group_and_none_follows_the_last(total: int, warmup: int) -> None:
    optimizer = build_optimizer(network(), {"type": "StableAdamW", "kwargs": {"lr": 2e-3}}, {"slow": 0.25})
    kwargs = {"warmup_steps": warmup, "final_lr": 2e-4}
    scheduler = build_scheduler(optimizer, {"type": "WarmupCosineLR", "kwargs": kwargs}, total)
    found = np.array(rates(scheduler, total + 3))
    expected = expected_rates(total, warmup, 2e-3, 2e-4)
    expected = np.concatenate([expected, expected[-1:].repeat(3)])
    np.testing.assert_allclose(found, np.stack([0.25 * expected, expected], axis=1), rtol=1e-12)
    assert scheduler.last_epoch == total - 1


def test_a_run_shorter_than_the_warmup_ends_on_the_way_up() -> None:
    scheduler = WarmupCosineLR(StableAdamW(parameters(), lr=1.0), total_steps=3, warmup_steps=5)
    np.testing.assert_allclose(np.ravel(rates(scheduler, 3)), [0, 0.25, 0.5])


def test_a_resumed_schedule_goes_on_and_its_state_is_plain_numbers() -> None:
    optimizer = StableAdamW(parameters(), lr=1.0)
    scheduler = WarmupCosineLR(optimizer, total_steps=9, warmup_steps=3, final_lr=0.1)
    before = rates(scheduler, 5)
    state, optimizer_state = scheduler.state_dict(), optimizer.state_dict()
    for value in state.values():
        assert all(isinstance(number, int | float) for number in (value if isinstance(value, list) else [value]))
    assert state["total_steps"] == 9
    fresh = StableAdamW(parameters(), lr=1.0)
    resumed = WarmupCosineLR(fresh, total_steps=9, warmup_steps=3, final_lr=0.1)
    fresh.load_state_dict(optimizer_state)
    resumed.load_state_dict(state)
    np.testing.assert_allclose(np.ravel(before + rates(resumed, 4)), expected_rates(9, 3, 1.0, 0.1), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps -1 must be a whole number, at least 0"),
        ({"warmup_steps": 1.5}, "warmup_steps 1.5 must be a whole number"),
        ({"warmup_steps": True}, "warmup_steps True must be a whole number"),
        ({"final_lr": -0.1}, "final_lr -0.1 must be at least 0"),
        ({"final_lr": math.inf}, "final_lr inf must be at least 0"),
    ],
)
def test_a_schedule_out_of_range_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        WarmupCosineLR(StableAdamW(parameters()), **{"total_steps": 9} | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "each_step"),
    [("StepLR", {"step_size": 1}, False), ("OneCycleLR", {"max_lr": 1.0}, True), ("WarmupCosineLR", {}, True)],
)
def test_schedules_act_each_step_or_each_epoch(name: str, kwargs: dict[str, Any], each_step: bool) -> None:
    optimizer = build_optimizer(network(), {"type": "AdamW", "kwargs": {"lr": 1.0}})
    scheduler = build_scheduler(optimizer, {"type": name, "kwargs": kwargs}, 10)
    assert type(scheduler) is getattr(optim, name)
    assert acts_each_step(scheduler) is each_step


def test_every_optimiser_is_built_and_torch_s_are_fused() -> None:
    for name in ("AdamW", "Adam", "SGD", "StableAdamW"):
        optimizer = build_optimizer(network(), {"type": name, "kwargs": {"lr": 1.0}})
        assert type(optimizer) is getattr(optim, name)
        assert optimizer.defaults.get("fused", False) == (name != "StableAdamW")
