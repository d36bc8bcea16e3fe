"""Damaged files of every kind that people give to each other end in a result or in one line: no traceback, no hang, no growth.

Each target is attacked in the same 30 ways; `make fuzz` takes new ones until it finds something. FUZZ_SEED repeats a run.
"""

import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datasets.cached import is_whole
from datasets.images import ImageReader
from datasets.lists import read_list
from tests.helpers import tiny
from tests.helpers.mutations import NASTY, change, damage
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.evaluation.calibration import Calibration, Threshold, read_calibration
from utils.limits import MESSAGE
from utils.predict.export import export_checkpoint
from utils.predict.onnx_engine import METADATA, OnnxEngine, read_metadata
from utils.predict.outputs import LABELS, Output
from utils.predict.report import write_prediction_report
from utils.predict.torch_engine import TorchEngine
from utils.process.checkpoint import load_checkpoint
from utils.report.page import render
from utils.report.result_folder import read_result

SECONDS = float(os.environ.get("FUZZ_SECONDS", "7"))
IS_OPEN = "FUZZ_SECONDS" in os.environ  # new attacks each time; `make test` has the same ones, so that it does not fail by chance
SEED = int(os.environ.get("FUZZ_SEED") or (int.from_bytes(os.urandom(4), "big") if IS_OPEN else 0))
TURNS = sys.maxsize if IS_OPEN else 30
LONGEST, GROWTH = 30, 1_000_000  # seconds of an attack; kilobytes of memory in all

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run: trained, in tiles and with a region of interest, evaluated, exported, calibrated."""
    path = tiny.make(tmp_path_factory.mktemp("fuzz"))
    (path.parent / "roi.json").write_text("[[[0, 0], [1, 0], [1, 1]]]")
    more = "  roi: roi.json\n  tiles: {size: [48, 48], overlap: 16}\n  batch_size: 4"
    path.write_text(path.read_text().replace("  batch_size: 4", more))
    tiny.train(path)
    tiny.evaluate(path)
    export_checkpoint(path.parent / "checkpoints/ckpt.pth.tar", "onnx")
    threshold = Threshold(1.0, 20, (0.0, 0.1))
    calibration = Calibration("max", 0.05, "ckpt.pth.tar", "0" * 64, 1, "held out", threshold, {"cup": threshold})
    (path.parent / "calibration.json").write_text(json.dumps(calibration.to_dict()))
    return path.parent


@pytest.fixture(autouse=True)
def _bounds() -> Iterator[None]:
    """An attack that takes too long, and memory that is not given back, fail."""
    before = resident()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    gc.collect()
    assert resident() - before < GROWTH


def resident() -> int:
    """Kilobytes of memory that this process has now; an image of many pixels may take more for a moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def attack(make: Callable[[random.Random], Any], use: Callable[[Any], Any]) -> None:
    """Give what `make` makes to `use` until the time is over; anything but a result or a short line fails with its seed."""
    started, turn = time.monotonic(), 0
    while turn < 3 or (turn < TURNS and time.monotonic() - started < SECONDS):
        case = f"{SEED}-{turn}"
        given = make(random.Random(case))
        signal.alarm(LONGEST)
        try:
            use(given)
        except UserError as error:
            assert str(error).isprintable(), case  # noqa: PT017
            assert len(str(error)) <= MESSAGE + 3, case  # noqa: PT017
        except BaseException as error:
            raise AssertionError(f"FUZZ_SEED={SEED}, turn {turn}: {type(error).__name__}: {error}") from error
        signal.alarm(0)
        turn += 1


def text_of(value: Any, rng: random.Random) -> bytes:
    """The structure as JSON, changed or damaged."""
    if rng.random() < 0.7:
        return json.dumps(change(value, rng)).encode()
    return damage(json.dumps(value, indent=rng.choice([None, 1])).encode(), rng)


def writing(path: Path, use: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def write(content: bytes) -> Any:
        path.write_bytes(content)
        return use(path)

    return write


def test_checkpoints(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints/ckpt.pth.tar"
    content, data = load_checkpoint(path), path.read_bytes()

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return damage(data, rng)
        part = rng.choice(["config", "config", "epoch", "history", "running_epoch"])
        try:
            torch.save({**content, part: change(content[part], rng)}, tmp_path / "made")
        except (RecursionError, UnicodeEncodeError):  # no such file can be written
            return damage(data, rng)
        return (tmp_path / "made").read_bytes()

    def read(path: Path) -> None:
        engine = TorchEngine(path, "cpu")
        if engine.tiles:
            engine.tiles.layout((300, 400))

    attack(make, writing(tmp_path / "ckpt.pth.tar", read))


def test_states_of_a_training(run: Path, tmp_path: Path) -> None:
    content = load_checkpoint(run / "checkpoints/ckpt.pth.tar")
    folders = [f"{key}={tmp_path}/again" for key in ("saver.save_dir", "saver.log_dir", "evaluator.save_dir")]
    arguments = (*folders, f"saver.resume_model={tmp_path}/given", "dataset.test.meta_file=None")

    def resume(changed: dict[str, Any]) -> None:
        try:
            torch.save({**content, **changed}, tmp_path / "given")
        except UnicodeEncodeError:
            return
        tiny.train(run / "config.yaml", *arguments)  # it has no epoch left

    parts = ("optimizer", "scheduler", "random_states", "running_epoch", "epoch", "best_metric", "history")
    attack(lambda rng: {part: change(content[part], rng) for part in [rng.choice(parts)]}, resume)


def test_exported_files(run: Path, tmp_path: Path) -> None:
    data = (run / "checkpoints/ckpt.onnx").read_bytes()
    entries = OnnxEngine(data).session.get_modelmeta().custom_metadata_map

    def make(rng: random.Random) -> bytes | dict[str, str]:
        if rng.random() < 0.3:
            return damage(data, rng)
        key = rng.choice(list(METADATA))
        return {**entries, key: text_of(json.loads(entries[key]), rng).decode("utf-8", "replace")}

    attack(make, lambda given: OnnxEngine(given) if isinstance(given, bytes) else read_metadata(given, "file"))


def test_configurations(run: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load((run / "config.yaml").read_text())

    def make(rng: random.Random) -> bytes:
        return text_of(raw, rng) if rng.random() < 0.7 else damage((run / "config.yaml").read_bytes(), rng)

    attack(make, writing(tmp_path / "config.yaml", load_config))


def test_overrides(run: Path) -> None:
    keys = ["random_seed", "dataset.input_size", "saver.save_dir", "net.reconstruction.kwargs", "trainer.optimizer.kwargs.lr"]
    keys += ["net.0.type", "evaluator.metrics.auc", "dataset.train", "version", "net"]

    def make(rng: random.Random) -> str:
        value = (
            str(rng.choice(NASTY))
            if rng.random() < 0.7
            else damage(b"{a: [1, 2], b: 0.5}", rng).decode("utf-8", "surrogateescape")
        )
        return f"{rng.choice(keys)}={value}"

    attack(make, lambda override: load_config(run / "config.yaml", [override]))


def test_lists(run: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (run / "data/test.json").read_text().splitlines()]

    def read(path: Path) -> None:
        read_list(path)
        config = to_plain(load_config(run / "config.yaml", [f"dataset.test.meta_file={path}"]))
        from datasets.build import build_dataset

        data = build_dataset(config["dataset"], "test")
        [data[index] for index in range(len(data))]

    def make(rng: random.Random) -> bytes:
        return b"\n".join(text_of(record, rng) if rng.random() < 0.2 else json.dumps(record).encode() for record in records)

    attack(make, writing(tmp_path / "list.json", read))


@pytest.mark.parametrize("use", ["continue", "report"])
@pytest.mark.parametrize("name", ["predict.json", "scores.csv", "scores.jsonl"])
def test_folders_of_a_prediction(tmp_path: Path, name: str, use: str) -> None:
    format = "jsonl" if name.endswith("jsonl") else "csv"
    settings = {
        **dict.fromkeys(LABELS),
        "checkpoint": "c",
        "sha256": "0" * 64,
        "score": "max",
        "threshold": 0.6,
        "format": format,
        "folder": str(tmp_path),
        "normal": asdict(Threshold(0.6, 3, (0.0, 0.1), 0.5, (0.4, 0.5, 0.6))),
    }
    table = b"file,score,decision,ratio,p,regions,largest_percent,latency_ms\na.png,0.5,good,0.8,0.5,,,1.0\n"
    table += b"'=b.png,0.7,defective,1.2,0.25,,,1.0\n"
    line = {"file": "a.png", "score": 0.5, "decision": "good", "latency_ms": 1.0}
    whole = {"predict.json": json.dumps(settings).encode(), "scores.csv": table}
    whole["scores.jsonl"] = json.dumps(line).encode() + b"\n"

    def make(rng: random.Random) -> bytes:
        content = {"predict.json": settings, "scores.jsonl": line}.get(name)
        return damage(table, rng) if content is None else text_of(content, rng) + b"\n" * rng.randint(0, 1)

    def used(path: Path) -> None:
        if use == "continue":
            Output(path.parent, settings)
        else:
            write_prediction_report(path.parent)

    for file in ("predict.json", f"scores.{format}"):
        (tmp_path / file).write_bytes(whole[file])
    used(tmp_path / name)  # undamaged it is taken
    attack(make, writing(tmp_path / name, used))


def test_calibrations(run: Path, tmp_path: Path) -> None:
    content = json.loads((run / "calibration.json").read_text())
    attack(lambda rng: text_of(content, rng), writing(tmp_path / "calibration.json", read_calibration))


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "intervals.json", "report_gallery/gallery.json", "scores.csv"])
def test_result_folders(run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(run / "result", tmp_path / "result")
    data = (folder / name).read_bytes()

    def make(rng: random.Random) -> bytes:
        return damage(data, rng) if name == "scores.csv" else text_of(json.loads(data), rng)

    attack(make, writing(folder / name, lambda path: render(read_result(folder))))


def test_keys_of_caches(tmp_path: Path) -> None:
    key = {"format": 4, "shape": [2, 3, 4, 4], "dtype": "float32", "seen_size": [16, 16], "reads": "feature_align"}
    for name, size in (("features.bin", 384), ("masks.bin", 64), ("sizes.bin", 16), ("sums.bin", 24)):
        (tmp_path / name).write_bytes(bytes(size))
    attack(lambda rng: text_of(key, rng), writing(tmp_path / "key.json", lambda path: is_whole(path.parent, key)))


def test_images(run: Path, tmp_path: Path) -> None:
    reader, images = ImageReader(str(tmp_path)), sorted((run / "data").rglob("*.png"))

    def read(path: Path) -> None:
        for one in (reader.read, reader.read_mask):
            try:
                one(path.name)
            except UserError:
                if one is reader.read_mask:
                    raise

    attack(lambda rng: damage(rng.choice(images).read_bytes(), rng), writing(tmp_path / "any.png", read))
