"""The tiny experiment with a discriminator."""

from pathlib import Path

import yaml

from tests.helpers import tiny

DISCRIMINATOR = {
    "name": "discriminator",
    "type": "models.discriminators.Discriminator",
    "lr_scale": 4.0,
    "kwargs": {"outstride": 4},
}


def make(folder: Path) -> Path:
    """tests.helpers.tiny with everything of experiments/custom-plus; returns the configuration's path."""
    path = tiny.make(folder)
    config = yaml.safe_load(path.read_text())
    config["dataset"]["train"]["pseudo_anomalies"] = True
    config["criterion"].append({"name": "pseudo", "type": "PseudoAnomalyLoss", "kwargs": {"weight": 1.0}})
    config["trainer"]["lr_scheduler"] = {"type": "OneCycleLR", "kwargs": {"max_lr": 0.01, "pct_start": 0.25}}
    config["net"][1]["kwargs"]["standardise"] = True
    config["net"].append(DISCRIMINATOR)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
