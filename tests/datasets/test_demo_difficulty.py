"""The demo set, whole: what has learned nothing of it must not score well on it."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from datasets.build import build_dataloader, build_dataset
from datasets.demo.build import build_demo
from models import build_network
from models.losses import Criterion
from utils.config import load_config
from utils.evaluation.evaluate import Evaluation, compute_metrics, evaluate
from utils.process.distributed import Process
from utils.process.seeding import seed_everything

CONFIG = Path(__file__).resolve().parents[2] / "experiments/demo/config.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("demo") / "set"
    build_demo(folder)
    lists = [f"dataset.{split}.meta_file={folder / split}.json" for split in ("train", "test")]
    return load_config(CONFIG, [f"dataset.image_reader.kwargs.image_dir={folder}", *lists])


@pytest.fixture(scope="module")
def untrained(config) -> Evaluation:
    seed_everything(config.random_seed)
    loader = build_dataloader(build_dataset(config.dataset, "test"), config.dataset, "test")
    return evaluate(build_network(config.net), loader, Criterion(config.criterion), Process())


def test_an_untrained_head_stays_below_075(config, untrained: Evaluation) -> None:
    results = compute_metrics(untrained, config.evaluator.metrics).numbers()
    assert results["mean_max_auc"] < 0.75
    assert results["mean_pixel_auc"] < 0.75


def test_the_mean_pixel_value_stays_below_075_whichever_way_it_is_read(config, untrained: Evaluation) -> None:
    data = build_dataset(config.dataset, "test")
    brightness = np.array([data.read_rgb(index).mean() for index in range(len(data))])
    areas = []
    for clsname in sorted(set(untrained.clsnames)):
        chosen = untrained.clsnames == clsname
        areas.append(roc_auc_score(untrained.labels[chosen], brightness[chosen]))
    assert np.mean(areas) < 0.75
    assert np.mean(np.abs(np.array(areas) - 0.5)) < 0.25  # class by class, dark defects count as well as bright ones
