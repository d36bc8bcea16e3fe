"""Trainings of a vis decoder on the tiny data set."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from easydict import EasyDict

from tests.helpers import tiny
from utils.config import CLASS_OUTPUTS, load_config
from utils.process.checkpoint import load_checkpoint
from utils.process.distributed import Process
from utils.runs.vis_decoder import train_decoder

TOOL = tiny.ROOT / "tools" / "train_vis_decoder.py"

NET = """
net:
  - name: backbone
    type: models.backbones.efficientnet_lite0
    frozen: True
    kwargs: {pretrained: False, outlayers: [1, 2, 3]}
  - {name: neck, type: models.necks.MFCN, kwargs: {outstrides: [16]}}
  - {name: reconstruction, type: models.reconstructions.VisDecoder, kwargs: {block_type: basic, width: 8}}
"""

SECTIONS = ("dataset", "criterion", "trainer", "saver", "net")

CONFIG = (
    """
random_seed: 7
reproduce: True
dataset:
  type: custom
  image_reader: {kwargs: {image_dir: data}}
  train: {meta_file: data/test.json}
  test: {meta_file: data/test.json}
  input_size: [64, 64]
  pixel_mean: [0.485, 0.456, 0.406]
  pixel_std: [0.229, 0.224, 0.225]
  batch_size: 3
  workers: 0
criterion:
  - {name: ImageMSELoss, type: ImageMSELoss, kwargs: {weight: 1.0}}
trainer:
  max_epoch: 2
  lr_scheduler: {kwargs: {step_size: 10}}
  optimizer: {type: AdamW, kwargs: {lr: 0.003}}
saver: {always_save: False, load_path: "{class_name}/checkpoints/ckpt.pth.tar"}
visualization: {vis_freq_epoch: 1, vis_dir: vis}
"""
    + NET
)


def make(folder: Path) -> Path:
    """Write tests.helpers.tiny's data (5 test images of cup, 4 of tile) and a configuration of decoders; returns its path."""
    path = tiny.make(folder)
    path.write_text(CONFIG)
    return path


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def load(path: Path, clsname: str = "cup", *overrides: str) -> EasyDict:
    return load_config(path, overrides, SECTIONS, clsname, CLASS_OUTPUTS)


def train(path: Path, clsname: str = "cup", *overrides: str, overwrite: bool = False) -> dict:
    """Train in this process; returns the last checkpoint's content."""
    with one_thread():
        train_decoder(load(path, clsname, *overrides), Process(), overwrite)
    return load_checkpoint(path.parent / clsname / "checkpoints/ckpt.pth.tar")


def run_tool(script: Path, path: Path, *args: str) -> tiny.Outcome:
    """`python script --config path *args` in another process, from the folder /."""
    command = tiny.command(path, *args, script=script)
    done = subprocess.run(command, cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False)
    return tiny.Outcome(done.returncode, done.stdout, done.stderr)


def files(folder: Path, pattern: str = "*") -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob(pattern) if file.is_file()}


def read(path: Path) -> np.ndarray:
    """H x W x 3, RGB."""
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, path
    return image[..., ::-1].astype(int)
