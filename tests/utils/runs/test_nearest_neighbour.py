"""tools/nearest_neighbour.py: distances to some random normal tokens, evaluated like a trained model."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from tests.helpers import tiny
from utils.config import load_config
from utils.errors import UserError
from utils.process.distributed import Process
from utils.report.page import write_report
from utils.report.summary import format_text, summarize
from utils.runs.nearest_neighbour import NearestNeighbour, choose_places, evaluate_nearest_neighbour, find_nearest, fit

TOOL = tiny.ROOT / "tools" / "nearest_neighbour.py"
IMAGES, CHANNELS, GRID, STRIDE = 6, 5, (4, 3), 2
PLACES = GRID[0] * GRID[1]


@pytest.fixture
def normal() -> Tensor:
    """Normal features, N x C x h x w; each channel has its own mean and deviation."""
    scale = torch.tensor([0.1, 1.0, 3.0, 10.0, 100.0])[:, None, None]
    return torch.randn((IMAGES, CHANNELS, *GRID), generator=torch.Generator().manual_seed(0)) * scale + 5 * scale


def fit_to(features: Tensor, tokens: int = 10**6, seed: int = 0, batch: int = 4) -> NearestNeighbour:
    batches = zip(torch.arange(len(features)).split(batch), features.split(batch), strict=True)
    return fit(batches, choose_places(len(features), PLACES, tokens, seed), STRIDE)


def averaged(features: Tensor) -> np.ndarray:
    """The mean of each place and its eight neighbours, zeros outside the grid, computed one by one: N x h x w x C."""
    grids = features.numpy().astype(np.float64).transpose(0, 2, 3, 1)
    h, w = GRID
    near = [[grids[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].sum(axis=(1, 2)) / 9 for x in range(w)] for y in range(h)]
    return np.array(near).transpose(2, 0, 1, 3)


# --- the distance ---


def test_distances_are_those_of_a_brute_force_search(normal: Tensor):
    test = normal[:2].flip(3) * 1.3
    outputs = fit_to(normal)({"feature_align": test})
    deviation = normal.double().std(dim=(0, 2, 3), correction=0).numpy()
    stored, queries = ((averaged(features) / deviation).reshape(-1, CHANNELS) for features in (normal, test))
    distances, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(stored).kneighbors(queries)
    expected = torch.from_numpy(distances).float().reshape(2, 1, *GRID) / CHANNELS**0.5
    torch.testing.assert_close(outputs["distance"], expected, rtol=1e-4, atol=1e-5)


def test_the_reconstruction_is_the_nearest_token_in_the_features_units(normal: Tensor):
    outputs = fit_to(normal)({"feature_align": normal})
    torch.testing.assert_close(outputs["feature_rec"].movedim(1, -1), torch.from_numpy(averaged(normal)).float())
    torch.testing.assert_close(outputs["distance"], torch.zeros(IMAGES, 1, *GRID))


def test_the_map_has_the_images_size_and_the_distances_at_its_corners(normal: Tensor):
    outputs = fit_to(normal, tokens=5)({"feature_align": normal})
    assert outputs["pred"].shape == (IMAGES, 1, GRID[0] * STRIDE, GRID[1] * STRIDE)
    torch.testing.assert_close(outputs["pred"][..., ::7, ::5], outputs["distance"][..., ::3, ::2])


def test_a_channel_that_never_changes_counts_nothing(normal: Tensor):
    normal[:, 1] = 0.1
    normal[::2, 1] = torch.tensor(0.1).nextafter(torch.tensor(1.0))  # except for the last bit
    neighbour = fit_to(normal, tokens=20)
    changed = normal.clone()
    changed[:, 1] = 50.0
    before, after = (neighbour({"feature_align": features}) for features in (normal, changed))
    assert torch.equal(before["distance"], after["distance"])
    assert before["distance"].max() > 0
    torch.testing.assert_close(after["feature_rec"][:, 1], normal[:, 1])


def test_a_unit_of_distance_is_a_deviation_whatever_the_features_scale(normal: Tensor):
    near, far = (fit_to(features, tokens=20)({"feature_align": features})["distance"] for features in (normal, normal * 1000))
    torch.testing.assert_close(near, far)


def test_how_many_distances_are_held_at_a_time_does_not_matter(normal: Tensor):
    queries, tokens = normal.movedim(1, -1).reshape(-1, CHANNELS).split(40)
    nearest = find_nearest(queries, tokens)
    assert torch.equal(nearest, torch.cdist(queries, tokens).argmin(dim=1))
    for block in (1, 100, 999):
        assert torch.equal(find_nearest(queries, tokens, block), nearest)


# --- the tokens ---


def test_statistics_are_of_all_normal_features_and_no_batch_size_changes_them(normal: Tensor):
    for batch in (1, 4, 6):
        neighbour = fit_to(normal, tokens=7, batch=batch)
        torch.testing.assert_close(neighbour.standardise.mean, normal.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(neighbour.standardise.deviation, normal.std(dim=(0, 2, 3), correction=0))
        torch.testing.assert_close(neighbour.tokens, fit_to(normal, tokens=7).tokens)


def test_a_seed_chooses_the_same_tokens_again_and_another_seed_others(normal: Tensor):
    first, again, other = (fit_to(normal, tokens=9, seed=seed).tokens for seed in (1, 1, 2))
    assert first.shape == (9, CHANNELS)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_token_is_chosen_twice_and_all_images_have_some():
    chosen = choose_places(images=50, places=12, count=400, seed=3)
    assert chosen.shape == (50, 12)
    assert chosen.sum() == 400
    assert chosen.any(dim=0).all()
    assert chosen.any(dim=1).all()


def test_where_there_are_no_more_tokens_than_asked_for_all_are_stored(normal: Tensor):
    tokens = fit_to(normal, tokens=IMAGES * PLACES + 1).tokens
    expected = (torch.from_numpy(averaged(normal)).reshape(-1, CHANNELS) - normal.mean(dim=(0, 2, 3))) / normal.std(
        dim=(0, 2, 3), correction=0
    )
    torch.testing.assert_close(tokens, expected.float(), rtol=1e-4, atol=1e-4)


def test_chosen_tokens_of_skipped_images_only_are_an_error(normal: Tensor):
    chosen = torch.zeros(2, PLACES, dtype=torch.bool)
    chosen[1, 0] = True
    with pytest.raises(UserError, match="no training image with a chosen token can be read"):
        fit([(torch.tensor([0]), normal[:1])], chosen, STRIDE)


# --- the tool ---


def run(path: Path, *args: str, code: int = 0) -> str:
    """The tool's output, run from another folder."""
    arguments = tiny.command(path, *args, script=TOOL)
    outcome = subprocess.run(arguments, cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False)
    assert outcome.returncode == code, outcome.stderr
    return outcome.stdout + outcome.stderr


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tiny.make(tmp_path_factory.mktemp("nearest"))
    config = yaml.safe_load(path.read_text())
    config["evaluator"]["vis_compound"] = {"save_dir": "pictures", "max_score": None, "min_score": None}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def output(path: Path) -> str:
    return run(path, "--tokens", "100")


def test_it_says_what_it_took(path: Path, output: str):
    assert "nearest of 100 tokens from 10 training images; 9 test images" in output
    assert all(word in output for word in ("features ", "sampling ", "scoring ", "peak memory "))
    assert (path.parent / "result_nearest_neighbour/table.txt").read_text().strip() in output


def test_it_writes_a_result_folder_that_summarize_and_report_read(path: Path, output: str):
    folder = path.parent / "result_nearest_neighbour"
    written = {file.name for file in folder.iterdir()}
    assert written >= {"metrics.json", "table.txt", "scores.csv", "intervals.json", "run.json", "report.html"}
    results = json.loads((folder / "metrics.json").read_text())
    assert results["mean_pixel_auc"] > 0.8  # noise on a plain ground
    assert f"{results['mean_pixel_auc']:.4f}" in format_text(summarize([folder]))
    assert "nearest neighbour to 100 normal tokens" in write_report(folder).read_text()


def test_it_leaves_a_trained_models_result_and_the_configurations_pictures_alone(path: Path, output: str):
    assert not any((path.parent / name).exists() for name in ("result", "checkpoints", "pictures"))


def evaluate(path: Path, *overrides: str) -> dict[str, float]:
    """metrics.json of 100 tokens, computed in this process."""
    config = load_config(path, [f"evaluator.save_dir={path.parent}/here", *overrides])
    try:
        evaluate_nearest_neighbour(config, Process(), tokens=100)
    finally:
        torch.use_deterministic_algorithms(False)
    return json.loads((path.parent / "here/metrics.json").read_text())


def test_the_same_seed_gives_the_same_result_with_and_without_the_feature_cache(path: Path):
    first = evaluate(path, "dataset.feature_cache.mode=off")
    assert evaluate(path, "dataset.feature_cache.dtype=float32") == pytest.approx(first)
    assert evaluate(path, "dataset.feature_cache.mode=off") == first


def test_it_reads_the_features_that_a_training_has_kept(tmp_path: Path):
    path = tiny.make(tmp_path)
    tiny.train(path, "dataset.feature_cache.mode=auto", "dataset.feature_cache.dir=kept")
    output = run(path, "--tokens", "100", "dataset.feature_cache.mode=auto", "dataset.feature_cache.dir=kept")
    assert [line.split(", ")[-1].split(" /")[0] for line in output.splitlines() if "feature cache: " in line] == ["read from"] * 2


def test_training_images_are_not_augmented(path: Path):
    off = "dataset.feature_cache.mode=off"
    assert evaluate(path, off, "dataset.train.hflip=True", "dataset.train.rotate=True") == evaluate(path, off)


def test_each_class_by_itself(path: Path):
    assert "one model a class, 2 classes" in run(path, "--tokens", "100", "dataset.separate=True")
    assert summarize([path.parent / name / "result_nearest_neighbour" for name in ("cup", "tile")])


def test_no_tokens_at_all_are_refused(path: Path):
    assert "--tokens: must be at least 1" in run(path, "--tokens", "0", code=2)


def test_several_processes_are_refused(path: Path):
    with pytest.raises(UserError, match="one process's work"):
        evaluate_nearest_neighbour(load_config(path), Process(world_size=2), tokens=10)
