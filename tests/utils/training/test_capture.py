"""A training step that is recorded once and replayed: the same run as the plain one, on a CPU with noted operations."""

from functools import partial
from pathlib import Path

import pytest
import torch

from datasets.cached import FeatureDataset
from models.losses import GroupCosineLoss
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.recorder import Recorder, record
from tests.helpers.started_runs import result
from utils.errors import UserError
from utils.process.distributed import Process
from utils.training import capture, trainer
from utils.training.acceleration import why_not_captured
from utils.training.capture import CapturedStep

# Dropout on a CPU takes its bits from NumPy, whose work is no operation of torch. Jitter draws from torch's generator.
RUNS = {
    "UniAD": ("net.reconstruction.kwargs.dropout=0", "net.reconstruction.kwargs.feature_jitter.prob=0.5"),
    "bfloat16": ("net.reconstruction.kwargs.dropout=0", "trainer.precision=bfloat16"),
    "Dinomaly": (*tiny.DINOMALY, "net.reconstruction.kwargs.dropout=0"),
}
PARTS = {"UniAD": [1, 3], "bfloat16": [2], "Dinomaly": [3]}


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """From now on steps are recorded, by those in the list, and cached features held, as on a GPU."""
    found: list[Recorder] = []
    monkeypatch.setattr(trainer, "hold_features", lambda data, device: isinstance(data, FeatureDataset) and data.hold(device))
    monkeypatch.setattr(capture, "record_graph", partial(record, recorders=found))
    monkeypatch.setattr(trainer, "why_not_captured", lambda *_: None)
    return found


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_a_recorded_step_trains_as_a_plain_one_bit_for_bit(tmp_path: Path, name: str, cache: str, request, monkeypatch) -> None:
    """With noise, a smaller last batch, rates and shares of easy positions that change each step, and a resume."""
    monkeypatch.setattr(GroupCosineLoss.__init__, "__defaults__", (1.0, 0.9, 0.1, 5))  # five steps of warm-up
    contents = []
    for folder, parts in (("plain", PARTS[name][-1:]), ("recorded", PARTS[name])):
        recorders = request.getfixturevalue("recorders") if folder == "recorded" else []
        path = tiny.make(tmp_path / folder)
        for epochs in parts:
            options = (f"trainer.max_epoch={epochs}", "saver.auto_resume=True", f"dataset.feature_cache.mode={cache}")
            tiny.train(path, *RUNS[name], *options)
        contents.append(result(path))
    assert [recorder.replays for recorder in recorders] == [1 + 2 * epochs for epochs in ([1, 2] if len(parts) == 2 else parts)]
    assert_same(*contents)


def step_of(weight: torch.nn.Parameter, calls: list[str]) -> CapturedStep:
    """Of a loss with noise, for batches of two; `calls` gets the files of each batch that is run plainly."""

    def run(batch: dict) -> torch.Tensor:
        calls.append(batch["filename"][0])
        weight.grad = None
        loss = (weight * batch["image"] + torch.randn(1)).square().sum()
        loss.backward()
        return loss.detach()

    return CapturedStep(run, [weight], 2, torch.device("cpu"))


def test_a_batch_is_copied_and_a_smaller_one_is_run_plainly(recorders: list[Recorder]) -> None:
    weight, calls = torch.nn.Parameter(torch.ones(1)), []
    step, plain = step_of(weight, calls), step_of(weight, []).step
    batches = [{"image": torch.full((size,), float(n)), "filename": [str(n)] * size} for n, size in enumerate([1, 2, 2, 1, 2])]
    results = []
    for run in (step, plain):
        torch.manual_seed(0)
        results.append([(run(batch), weight.grad.clone()) for batch in batches])
    assert results[0] == results[1]
    assert calls == ["0", "1", "1", "1", "3"]  # the second: warm-up, recording and check
    assert len(recorders) == 1


def test_a_recording_that_differs_is_not_used(recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch, log_text) -> None:
    monkeypatch.setattr(Recorder, "replay", lambda recorder: recorder.calls[-1][3].add_(1))
    weight, calls = torch.nn.Parameter(torch.ones(1)), []
    step = step_of(weight, calls)
    for _ in range(3):
        assert step({"image": torch.zeros(2), "filename": ["a", "b"]}) < 20
    assert len(calls) == 3 + 3
    assert "a CUDA graph gives another training step" in log_text()


def test_a_step_that_cannot_be_recorded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def record_graph(run):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    monkeypatch.setattr(capture, "record_graph", record_graph)
    with pytest.raises(UserError, match=r"\(CUDA error: .* stream is capturing\): set trainer\.cuda_graph=False$"):
        step_of(torch.nn.Parameter(torch.ones(1)), [])({"image": torch.zeros(2), "filename": ["a", "b"]})


GPU = Process(device=torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("process", "cfg", "network", "reason"),
    [
        (GPU, {}, torch.nn.Linear(1, 1), None),
        (Process(), {}, torch.nn.Linear(1, 1), "there is no GPU"),
        (GPU, {"cuda_graph": False}, torch.nn.Linear(1, 1), "trainer.cuda_graph is False"),
        (Process(world_size=2, device=GPU.device), {}, torch.nn.Linear(1, 1), "there are several processes"),
        (GPU, {"compile": True}, torch.nn.Linear(1, 1), "the network is compiled"),
        (GPU, {}, torch.nn.BatchNorm1d(1), "statistics are gathered, which a recording is not checked for"),
        (GPU, {}, torch.nn.BatchNorm1d(1).eval(), None),
    ],
)
def test_what_is_recorded(process: Process, cfg: dict, network: torch.nn.Module, reason: str | None) -> None:
    assert why_not_captured(network, {"cuda_graph": True, "compile": False, **cfg}, process) == reason
