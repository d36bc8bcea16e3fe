"""Evaluation: the table, metrics.json, scores.csv and saved reconstructions say what the model says of the test set."""

import csv
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from datasets.build import build_dataloader, build_dataset
from models import build_network
from models.losses import Criterion
from tests.helpers import tiny
from utils.config import load_config
from utils.evaluation.evaluate import compute_metrics
from utils.evaluation.evaluate import evaluate as run_network
from utils.evaluation.metrics import evaluate_maps
from utils.process.checkpoint import load_checkpoint, load_network_state
from utils.process.distributed import Process

COLUMNS = ["mean", "std", "max", "pixel"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tiny.make(tmp_path_factory.mktemp("trained"))
    tiny.train(path)
    return path.parent / "checkpoints/ckpt.pth.tar"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


def read_list(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path.parent / "data/test.json").read_text().splitlines()]


def write_list(path: Path, records: list[dict[str, Any]]) -> None:
    (path.parent / "data/test.json").write_text("".join(json.dumps(record) + "\n" for record in records))


def evaluate(path: Path, checkpoint: Path, *overrides: str) -> dict[str, float | None]:
    """metrics.json, read as strict JSON."""
    tiny.evaluate(path, f"saver.load_path={checkpoint}", *overrides)

    def refuse(constant: str) -> None:
        raise AssertionError(f"metrics.json holds {constant}, which is not JSON")

    return json.loads((path.parent / "result/metrics.json").read_text(), parse_constant=refuse)


def read_table(path: Path) -> list[list[str]]:
    lines = (path.parent / "result/table.txt").read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("-")]


def read_scores(path: Path) -> list[dict[str, str]]:
    with open(path.parent / "result/scores.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- tables and files ---


def test_the_table_and_the_file_hold_the_same_numbers_in_a_fixed_order(path: Path, checkpoint: Path, caplog) -> None:
    write_list(path, read_list(path)[::-1])
    with caplog.at_level("INFO", "uniad"):
        results = evaluate(path, checkpoint)
    header, *rows = read_table(path)
    assert header == ["clsname", *COLUMNS]
    assert [row[0] for row in rows] == ["cup", "tile", "mean"]
    for clsname, *cells in rows:
        assert cells == [f"{results[f'{clsname}_{name}_auc']:.4f}" for name in COLUMNS]
    assert len(results) == 3 * len(COLUMNS)
    for name in COLUMNS:
        assert results[f"mean_{name}_auc"] == pytest.approx((results[f"cup_{name}_auc"] + results[f"tile_{name}_auc"]) / 2)
    assert (path.parent / "result/table.txt").read_text().strip() in caplog.text


def test_columns_are_as_configured(path: Path, checkpoint: Path) -> None:
    metrics = "{auc: [{name: pixel}, {name: max}], ap: [{name: std}], f1max: [{name: pixel}], aupro: [{name: pixel}]}"
    results = evaluate(path, checkpoint, f"evaluator.metrics={metrics}")
    names = ["pixel_auc", "max_auc", "std_ap", "pixel_f1max", "pixel_aupro"]
    assert read_table(path)[0] == ["clsname", *names]
    assert set(results) == {f"{clsname}_{name}" for clsname in ("cup", "tile", "mean") for name in names}
    assert all(0 <= value <= 1 for value in results.values())


def test_scores_give_the_reported_numbers(path: Path, checkpoint: Path) -> None:
    results = evaluate(path, checkpoint)
    scores, records = read_scores(path), read_list(path)
    assert [row["filename"] for row in scores] == [record["filename"] for record in records]
    assert [int(row["label"]) for row in scores] == [record["label"] for record in records]
    for clsname in ("cup", "tile"):
        rows = [row for row in scores if row["clsname"] == clsname]
        for name in ("mean", "std", "max"):
            auc = roc_auc_score([int(row["label"]) for row in rows], [float(row[name]) for row in rows])
            assert results[f"{clsname}_{name}_auc"] == pytest.approx(auc, abs=1e-12)


def test_the_scores_are_those_of_the_models_map(path: Path, checkpoint: Path) -> None:
    evaluate(path, checkpoint)
    config = load_config(path)
    network, data = load_network(config.net, checkpoint), build_dataset(config.dataset, "test")
    for row, sample in zip(read_scores(path), data, strict=True):
        with torch.no_grad():
            anomaly_map = network({"image": sample["image"][None]})["pred"]
        expected = [anomaly_map.mean(), anomaly_map.std(correction=0), torch.nn.functional.avg_pool2d(anomaly_map, 4, 1).max()]
        assert [float(row[name]) for name in ("mean", "std", "max")] == pytest.approx([x.item() for x in expected], rel=1e-4)


def load_network(net: list[dict], checkpoint: Path) -> torch.nn.Module:
    network = build_network(net)
    load_network_state(network, load_checkpoint(checkpoint)["state_dict"], checkpoint)
    return network.eval()


# --- classes and images without truth ---


def test_a_class_of_one_label_has_no_number_and_a_warning_names_it(path: Path, checkpoint: Path, caplog) -> None:
    write_list(path, [record for record in read_list(path) if record["label"] == 0 or record["clsname"] == "cup"])
    results = evaluate(path, checkpoint)
    for name in COLUMNS:
        assert results[f"tile_{name}_auc"] is None
        assert results[f"mean_{name}_auc"] == results[f"cup_{name}_auc"] is not None
    assert read_table(path)[2] == ["tile", "nan", "nan", "nan", "nan"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all(f"tile_{name}_auc" in warning for name in COLUMNS)
    assert "cup" not in warning


def test_a_defective_image_without_a_mask_counts_in_image_metrics_only(path: Path, checkpoint: Path) -> None:
    records = read_list(path)
    full = evaluate(path, checkpoint)
    bare = next(record for record in records if record["label"] == 1)
    write_list(path, [{key: value for key, value in r.items() if key != "maskname" or r is not bare} for r in records])
    without_mask = evaluate(path, checkpoint)
    write_list(path, [record for record in records if record is not bare])
    without_image = evaluate(path, checkpoint)
    for name in ("mean", "std", "max"):
        assert without_mask[f"cup_{name}_auc"] == full[f"cup_{name}_auc"]
    assert without_mask["cup_pixel_auc"] == pytest.approx(without_image["cup_pixel_auc"], abs=1e-6)
    assert without_mask["cup_pixel_auc"] != pytest.approx(full["cup_pixel_auc"], abs=1e-3)


def test_training_goes_on_where_the_key_metric_has_no_number(path: Path) -> None:
    write_list(path, [{key: value for key, value in record.items() if key != "maskname"} for record in read_list(path)])
    tiny.train(path)
    assert load_checkpoint(path.parent / "checkpoints/ckpt.pth.tar")["best_metric"] == -math.inf
    assert not (path.parent / "checkpoints/ckpt_best.pth.tar").exists()


# --- maps and masks on demand, in bounded memory ---


def test_maps_and_masks_are_the_models_and_the_data_sets(path: Path, checkpoint: Path) -> None:
    config = load_config(path)
    network, data = load_network(config.net, checkpoint), build_dataset(config.dataset, "test")
    loader = build_dataloader(data, config.dataset, "test")
    with torch.no_grad():
        batches = [(batch["mask"], network(batch)["pred"]) for batch in loader]
    masks, maps = (torch.cat(tensors)[:, 0].numpy() for tensors in zip(*batches, strict=True))
    evaluation = run_network(network, loader, Criterion(config.criterion), Process())
    assert len(evaluation) == len(data) == 9
    for position in range(9):
        np.testing.assert_array_equal(evaluation.map(position), maps[position])
        np.testing.assert_array_equal(evaluation.mask(position), masks[position])
        assert (len(evaluation.packed_masks[position]) > 0) == (data.labels[position] == 1)
    assert evaluation.limits == (maps.min(), maps.max())
    scores = [{"name": "mean"}, {"name": "std"}, {"name": "max", "kwargs": {"avgpool_size": [4, 4]}}, {"name": "pixel"}]
    metrics = {"auc": scores, "ap": scores, "f1max": scores, "aupro": scores[-1:]}
    assert compute_metrics(evaluation, metrics).numbers() == evaluate_maps(maps, masks, data.labels, data.clsnames, metrics)


LARGE = """
import resource
import sys
import numpy as np
from utils.evaluation.evaluate import Evaluation, compute_metrics

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

count = 2000
before, names = peak(), np.full(count, "a", dtype=object)
grids = np.random.default_rng(0).random((count, 14, 14), dtype=np.float32)
masks = np.full(count, b"", dtype=object)
labels = np.arange(count) % 2
evaluation = Evaluation((224, 224), np.arange(count), grids, masks, labels, np.zeros(count), names, names)
results = compute_metrics(evaluation, {"auc": [{"name": "mean"}, {"name": "max"}]}).numbers()
assert 0.4 < results["a_mean_auc"] < 0.6
print(peak() - before)
"""


def test_a_large_class_without_pixel_metrics_never_has_its_maps_in_memory() -> None:
    """They would take 400 MB."""
    command = [sys.executable, "-c", LARGE]
    outcome = subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, check=True)
    assert int(outcome.stdout) < 80e6


def test_no_file_stays_open_for_a_batch(path: Path, checkpoint: Path) -> None:
    """A tensor that a worker made does so for as long as it lives; there are limits of 1,024."""
    config = load_config(path, ["dataset.workers=1", "dataset.batch_size=1"])
    loader = build_dataloader(build_dataset(config.dataset, "test"), config.dataset, "test")
    counts = []

    def criterion(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        counts.append(len(os.listdir("/dev/fd")))
        return torch.zeros(())

    run_network(load_network(config.net, checkpoint), loader, criterion, Process())
    assert len(counts) == 9
    assert max(counts) < counts[0] + 9


def test_a_data_set_without_masks_has_image_metrics_only(path: Path, checkpoint: Path) -> None:
    full = evaluate(path, checkpoint)
    write_list(path, [{key: value for key, value in record.items() if key != "maskname"} for record in read_list(path)])
    results = evaluate(path, checkpoint, "evaluator.vis_compound.save_dir=vis")
    for key, value in full.items():
        assert results[key] == (None if "pixel" in key else value)
    assert len(list((path.parent / "vis").rglob("*.jpg"))) == 9


# --- CIFAR-10 ---


def write_cifar(folder: Path) -> None:
    """Ten training images in each batch and thirty test images, as the official archive holds them."""
    folder.mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    rng = np.random.default_rng(0)
    contents: dict[str, dict] = {"batches.meta": {"label_names": names}}
    for name, count in [*((f"data_batch_{i}", 10) for i in range(1, 6)), ("test_batch", 30)]:
        labels = [i % 10 for i in range(count)]
        contents[name] = {"labels": labels, "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8)}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def test_cifar10_is_trained_and_evaluated_by_image_metrics_only(path: Path) -> None:
    write_cifar(path.parent / "cifar-10-batches-py")
    overrides = (
        "dataset={type: cifar10, root_dir: ., normals: [0, 1, 2, 3, 4], input_size: [64, 64], batch_size: 8, workers: 0,"
        " pixel_mean: [0.5, 0.5, 0.5], pixel_std: [0.25, 0.25, 0.25]}",
        "evaluator.metrics.auc=[{name: mean}, {name: std}, {name: max}]",
        "evaluator.key_metric=mean_mean_auc",
    )
    tiny.train(path, *overrides)
    checkpoint = path.parent / "checkpoints/ckpt.pth.tar"
    results = evaluate(path, checkpoint, *overrides)
    assert set(results) == {f"{clsname}_{name}_auc" for clsname in ("cifar", "mean") for name in ("mean", "std", "max")}
    assert load_checkpoint(checkpoint)["best_metric"] == results["mean_mean_auc"]
    scores = read_scores(path)
    assert [row["label"] for row in scores] == ["0", "0", "0", "0", "0", "1", "1", "1", "1", "1"] * 3
    assert scores[13]["filename"] == "cat/13.jpg"
    labels, means = ([float(row[key]) for row in scores] for key in ("label", "mean"))
    assert results["cifar_mean_auc"] == pytest.approx(roc_auc_score(labels, means), abs=1e-12)


# --- reconstructions ---


def test_reconstructions_are_saved_by_evaluation_alone(path: Path, checkpoint: Path) -> None:
    save_recon = "net.reconstruction.kwargs.save_recon.save_dir=recon"
    tiny.train(path, save_recon)
    assert not (path.parent / "recon").exists()
    evaluate(path, checkpoint, save_recon)
    config = load_config(path)
    network, data = load_network(config.net, checkpoint), build_dataset(config.dataset, "test")
    saved = {str(file.relative_to(path.parent / "recon")): np.load(file) for file in (path.parent / "recon").rglob("*.*")}
    assert set(saved) == {name.replace("/test/", "/").replace(".png", ".npy") for name in data.filenames}
    for sample in data:
        features = saved[sample["filename"].replace("/test/", "/").replace(".png", ".npy")]
        assert (features.dtype, features.shape) == (np.float32, (16 + 24 + 40, 8, 8))
        with torch.no_grad():
            expected = network({"image": sample["image"][None]})["feature_rec"][0].numpy()
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


def test_a_new_training_leaves_no_report_of_the_earlier_result(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    tiny.train(path)
    tiny.evaluate(path)
    report_parts = [tmp_path / "result" / name for name in ("report.html", "run.json", "report_gallery")]
    assert all(part.exists() for part in report_parts)
    tiny.train(path, overwrite=True)
    assert not any(part.exists() for part in report_parts)
    assert (tmp_path / "result/metrics.json").exists()


def test_run_json_is_of_the_checkpoint_that_was_evaluated_not_of_the_best_epoch(path: Path, checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)
    content |= {"epoch": 2, "best_metric": 0.9}
    content["history"] = [{"epoch": 1, "loss": 2.0, "mean_pixel_auc": 0.9}, {"epoch": 2, "loss": 1.0, "mean_pixel_auc": 0.4}]
    torch.save(content, path.parent / "second.pth.tar")
    evaluate(path, path.parent / "second.pth.tar")
    run = json.loads((path.parent / "result/run.json").read_text())
    assert (run["epoch"], run["checkpoint"]) == (2, str(path.parent / "second.pth.tar"))
    assert run["history"] == content["history"]
