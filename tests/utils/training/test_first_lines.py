"""What a run says of itself at its start: threads and workers, the memory of a step, the time that is left."""

import re
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from datasets.build import build_dataloader, build_dataset
from models import build_network
from models.losses import Criterion
from tests.helpers import discriminator, tiny
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.process import memory
from utils.process.distributed import Process
from utils.runs.start import describe_process
from utils.training import footprint, pace
from utils.training.footprint import saved_bytes
from utils.training.pace import Pace, in_words

MVTEC = Path(__file__).parents[3] / "experiments/MVTec-AD/config.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.mark.parametrize(("variable", "chosen"), [("2", "OMP_NUM_THREADS"), (None, "PyTorch's choice")])
def test_the_first_line_names_threads_and_workers_and_who_chose_them(
    path: Path, variable: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = load_config(path, ["dataset.train.workers=3", "dataset.workers=1"])
    two = Process(world_size=2, device=torch.device("cuda", 0))
    assert describe_process(config, "train", Process()) == (
        f"1 process on CPU, no GPU is visible; threads: 2 ({chosen}), loader workers: 3 (dataset.workers)"
    )
    assert describe_process(config, "test", two) == (
        f"2 processes on a GPU each; threads each: 2 ({chosen}), loader workers each: 1 (dataset.workers)"
    )


# --- memory ---


@pytest.mark.parametrize("name", ["UniAD", "Dinomaly", "plus", "trained backbone"])
def test_what_a_step_keeps_is_counted_without_running_it(tmp_path: Path, name: str) -> None:
    """As a real step keeps it; the network and the random numbers stay as they are."""
    path = (discriminator if name == "plus" else tiny).make(tmp_path)
    overrides = [*tiny.RECONSTRUCTIONS.get(name, ())] + ["frozen_layers=[]"] * (name == "trained backbone")
    config = to_plain(load_config(path, overrides))
    network, criterion = build_network(config["net"]), Criterion(config["criterion"])
    batch = next(iter(build_dataloader(build_dataset(config["dataset"], "train"), config["dataset"], "train")))
    images = {key: value for key, value in batch.items() if key in ("image", "pseudo", "pseudo_mask")}
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in network.state_dict().items()}
    counted, largest = saved_bytes(network, criterion, {key: value.to("meta") for key, value in images.items()})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())

    weights, kept = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}, {}
    with saved_tensors_hooks(lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x) if x.numel() else x, lambda x: x):
        loss = criterion(network(images))
    real = [value.untyped_storage().nbytes() for place, value in kept.items() if place not in weights]
    assert loss.requires_grad
    assert counted == pytest.approx(sum(real), rel=0.02)
    assert largest == max(real)


def test_a_size_that_was_killed_at_21_gb_is_known_beforehand() -> None:
    config = to_plain(load_config(MVTEC, ["dataset.input_size=[672, 896]", "net.backbone.kwargs.pretrained=False"]))
    inputs = {"image": torch.empty(8, 3, 672, 896, device="meta")}
    saved, _ = saved_bytes(build_network(config["net"]), Criterion(config["criterion"]), inputs)
    assert 50e9 < saved < 60e9


def test_a_step_that_cannot_fit_ends_the_run_with_one_line_before_anything_is_computed(
    path: Path, monkeypatch: pytest.MonkeyPatch, log_text
) -> None:
    tiny.train(path)
    needed, free = re.search(r"a training step of 4 images of 64x64 needs about (\S+) GB, (\S+) are free", log_text()).groups()
    assert float(needed) < 0.1 < float(free)
    monkeypatch.setattr(footprint, "free_bytes", lambda: 10**5)
    with pytest.raises(
        UserError, match=r"needs about 0\.0 GB, 0\.0 are free: use a smaller dataset\.batch_size or dataset\.input"
    ):
        tiny.train(path, overwrite=True)
    assert (path.parent / "checkpoints/ckpt.pth.tar").is_file()
    monkeypatch.setattr(footprint, "free_bytes", lambda: None)
    tiny.train(path, overwrite=True)
    assert log_text().count("needs about 0.0 GB") == 2


GROUP_FILES = {
    "0::/job\n": {"job/memory.max": "5000", "job/memory.current": "3000", "job/memory.stat": "anon 1\ninactive_file 500\n"},
    "5:cpu:/\n4:memory:/job/part\n": {
        "memory/job/part/memory.limit_in_bytes": "9000",
        "memory/job/part/memory.usage_in_bytes": "1000",
        "memory/job/part/memory.stat": "total_inactive_file 0\n",
        "memory/job/memory.limit_in_bytes": "4000",
        "memory/job/memory.usage_in_bytes": "1500",
        "memory/job/memory.stat": "total_inactive_file 0\n",
    },
    "0::/free\n": {"free/memory.max": "max", "free/memory.current": "3000", "free/memory.stat": "inactive_file 500\n"},
    "": {},
}


@pytest.mark.parametrize(("groups", "expected"), list(zip(GROUP_FILES, (2500, 2500, 7 * 1024, 7 * 1024), strict=True)))
def test_free_memory_is_the_least_of_the_machine_s_and_its_containers(
    tmp_path: Path, groups: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in GROUP_FILES[groups].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, text in {"MEMINFO": "MemFree:  1 kB\nMemAvailable:  5 kB\nSwapFree: 2 kB\n", "GROUPS_OF_PROCESS": groups}.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.free_bytes() == expected
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    assert (memory.free_bytes() is None) == (expected == 7 * 1024)


# --- time ---


def test_the_rate_is_that_of_the_steps_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 2 s, the first 100 s; a step that nobody waits for seems to take none."""
    clock, done = [0.0], []
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])

    def wait() -> None:
        clock[0] += sum(done)
        done.clear()

    counter, found = Pace(), []
    for number in range(30):
        done.append(2.0 if number else 100.0)
        found.append(counter.count_step(wait))
    assert [(number, seconds) for number, seconds in enumerate(found) if seconds] == [(9, 2.0)]


@pytest.mark.parametrize(("steps", "left"), [(9, None), (10, None), (25, 15)])
def test_after_ten_steps_a_line_says_what_is_left(path: Path, steps: int, left: int | None, log_text) -> None:
    tiny.train(path, f"trainer.max_step={steps}", "trainer.max_epoch=9", "trainer.val_freq_epoch=100")
    lines = re.findall(r"about \d+ s left: (\d+) steps of \d\.\d{3} s, evaluations not counted", log_text())
    assert lines == ([str(left)] if left else [])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3569, "59 min"),
        (3590, "1 h 0 min"),
        (7 * 3600 + 300, "7 h 5 min"),
        (3e5, "3 d 11 h"),
    ],
)
def test_a_duration_is_in_its_largest_units(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
