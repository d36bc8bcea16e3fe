"""A data set, a configuration and a network small enough to train within a test."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from easydict import EasyDict

from datasets.lists import lists_from_tree, write_list
from utils.config import load_config
from utils.process.distributed import Process
from utils.runs import evaluate as evaluating
from utils.runs import train as training

ROOT = Path(__file__).resolve().parents[2]
TRAIN_VAL = ROOT / "tools" / "train_val.py"

CONFIG = """
random_seed: 7
reproduce: True
dataset:
  type: custom
  image_reader: {kwargs: {image_dir: data}}
  train: {meta_file: data/train.json}
  test: {meta_file: data/test.json}
  input_size: [64, 64]
  pixel_mean: [0.485, 0.456, 0.406]
  pixel_std: [0.229, 0.224, 0.225]
  batch_size: 4
  workers: 0
criterion:
  - {name: FeatureMSELoss, type: FeatureMSELoss, kwargs: {weight: 1.0}}
trainer:
  max_epoch: 1
  clip_max_norm: 0.1
  val_freq_epoch: 1
  lr_scheduler: {kwargs: {step_size: 2, gamma: 0.1}}
  optimizer: {type: AdamW, kwargs: {lr: 0.001, betas: [0.9, 0.999], weight_decay: 0.0001}}
saver: {auto_resume: False, always_save: False}
evaluator:
  key_metric: mean_pixel_auc
  metrics:
    auc: [{name: mean}, {name: std}, {name: max, kwargs: {avgpool_size: [4, 4]}}, {name: pixel}]
frozen_layers: [backbone]
net:
  - name: backbone
    type: models.backbones.efficientnet_lite0
    kwargs: {pretrained: False, outlayers: [1, 2, 3]}
  - {name: neck, type: models.necks.MFCN, kwargs: {outstrides: [8]}}
  - name: reconstruction
    type: models.reconstructions.UniAD
    kwargs:
      hidden_dim: 16
      nhead: 2
      num_encoder_layers: 1
      num_decoder_layers: 1
      dim_feedforward: 16
      dropout: 0.1
      feature_jitter: {scale: 20.0, prob: 1.0}
      neighbor_mask: {neighbor_size: [3, 3], mask: [True, True, True]}
      initializer: {method: xavier_uniform}
"""


# An override that gives the configuration another reconstruction.
MEMORY = "net.reconstruction={name: reconstruction, type: models.reconstructions.Memory, kwargs: {max_tokens: 200}}"

# A ViT of two blocks instead of backbone and neck, cropped images, and the map smoothed, as Dinomaly has it.
DINOMALY = (
    "dataset.input_size=[80, 80]",
    "dataset.crop=[64, 64]",
    "criterion=[{name: loss, type: GroupCosineLoss}]",
    "trainer.optimizer={type: StableAdamW, kwargs: {lr: 0.002, amsgrad: True}}",
    "trainer.lr_scheduler={type: WarmupCosineLR, kwargs: {warmup_steps: 2, final_lr: 0.0002}}",
    "evaluator.map={size: [48, 48], sigma: 4.0}",
    "evaluator.metrics.auc=[{name: max}, {name: top}, {name: pixel}]",
    "net=[{name: backbone, type: models.backbones.timm, frozen: True,"
    " kwargs: {name: vit_tiny_patch16_224, pretrained: False, outlayers: [1, 2]}},"
    " {name: reconstruction, type: models.reconstructions.Dinomaly,"
    " kwargs: {nhead: 3, num_decoder_layers: 2, groups: [[0], [1]], dropout: 0.1}}]",
)
RECONSTRUCTIONS = {"UniAD": (), "Memory": (MEMORY,), "Dinomaly": DINOMALY}  # with the overrides that make it one


def make(folder: Path) -> Path:
    """Write data, lists and configuration into `folder`; returns the configuration's path.

    Two classes in MVTec layout: 5 training images each, and 2 good test images; 3 defective ones of cup, 2 of tile, with masks.
    """
    rng = np.random.default_rng(0)
    for clsname, defective in (("cup", 3), ("tile", 2)):
        base = rng.integers(40, 200, (8, 8, 3), dtype=np.uint8)
        for split, kind, count in (("train", "good", 5), ("test", "good", 2), ("test", "hole", defective)):
            for index in range(count):
                image = cv2.resize(base, (64, 64)) + rng.integers(0, 30, (64, 64, 3), dtype=np.uint8)
                if kind != "good":
                    y, x = rng.integers(4, 44, 2)
                    image[y : y + 16, x : x + 16] = rng.integers(0, 256, (16, 16, 3))
                    mask = np.zeros((64, 64), np.uint8)
                    mask[y : y + 16, x : x + 16] = 255
                    save_image(folder / f"data/{clsname}/ground_truth/{kind}/{index:03d}_mask.png", mask)
                save_image(folder / f"data/{clsname}/{split}/{kind}/{index:03d}.png", image)
    for records, name in zip(lists_from_tree(folder / "data"), ("train", "test"), strict=True):
        write_list(records, folder / f"data/{name}.json")
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    return path


def save_image(path: Path, pixels: np.ndarray) -> None:
    """pixels: HxW or HxWx3 uint8, BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def train(path: Path, *overrides: str, overwrite: bool = False) -> EasyDict:
    """Train in this process, on one thread; returns the configuration."""
    return _in_process(path, overrides, lambda config: training.train(config, Process(), overwrite))


def evaluate(path: Path, *overrides: str) -> EasyDict:
    """Evaluate saver.load_path in this process, on one thread; returns the configuration."""
    return _in_process(path, overrides, lambda config: evaluating.evaluate_checkpoint(config, Process()))


def _in_process(path: Path, overrides: Sequence[str], run) -> EasyDict:
    config = load_config(path, overrides)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(config)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    return config


@dataclass
class Outcome:
    """How a process ended."""

    code: int
    stdout: str
    stderr: str


def run_tool(path: Path, *args: str, processes: int = 1) -> Outcome:
    """`python tools/train_val.py --config path *args` in another process, under torchrun in several, from the folder /."""
    arguments = command(path, *args, processes=processes)
    outcome = subprocess.run(arguments, cwd="/", env=environment(), capture_output=True, text=True, check=False)
    return Outcome(outcome.returncode, outcome.stdout, outcome.stderr)


def command(path: Path, *args: str, processes: int = 1, script: Path = TRAIN_VAL) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(script), "--config", str(path), *args]


def environment() -> dict[str, str]:
    """This environment without the variables of a launcher."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "TORCHELASTIC_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return {**kept, "OMP_NUM_THREADS": "1"}
