"""Result folders of invented evaluations, and their report as a parsed page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from datasets.base import ImageDataset
from datasets.transforms import Transform
from utils.evaluation.evaluate import Evaluation, compute_metrics, pack_masks, write_results
from utils.report.gallery import headline_score, save_gallery

METRICS = {"auc": [{"name": name, "kwargs": {"avgpool_size": None}} for name in ("mean", "max", "pixel")]}

EVIL = """it's a "<script>alert(1)</script>" & <b>"""


class Noise(ImageDataset):
    """Pictures of noise, which no JPEG makes small, each its own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.transform = Transform((size, size), [0.5] * 3, [0.5] * 3)

    def read_rgb(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)


def make_evaluation(clsnames: list[str], good: int = 4, defective: int = 5, size: int = 16) -> Evaluation:
    """Of each class so many images; defects are squares in which the map is higher. The last defective one has no mask."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat([0, 1], [good, defective]), len(clsnames))
    names = np.repeat(np.array(clsnames, dtype=object), good + defective)
    maps = rng.random((len(labels), size, size), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=np.uint8)
    masks[labels == 1, 2 : size // 2, 2 : size // 2] = 1
    maps += masks * rng.random((len(labels), 1, 1), dtype=np.float32)
    if defective > 1:
        masks[good + defective - 1 :: good + defective] = 0
    files = [f"{clsname}/test/{label}/{n:03d}.png" for n, (clsname, label) in enumerate(zip(names, labels, strict=True))]
    indices = np.arange(len(labels))
    losses, files = np.zeros(len(labels)), np.array(files, dtype=object)
    return Evaluation((size, size), indices, maps, pack_masks(masks), labels, losses, names, files)


def write_folder(folder: Path, evaluation: Evaluation, size: int = 16) -> Path:
    """Everything that `-e` leaves, but the report."""
    write_results(folder, evaluation, compute_metrics(evaluation, METRICS), METRICS)
    score = headline_score(METRICS, "mean_max_auc")
    save_gallery(folder, evaluation, Noise(size), score, METRICS)
    history = [{"epoch": 1, "loss": 48.1}, {"epoch": 2, "loss": 30.5, "mean_max_auc": 0.75}]
    run = {
        "checkpoint": "runs/ckpt.pth.tar",
        "epoch": 2,
        "score": score,
        "history": history,
        "config": {"random_seed": 7, "evaluator": {"key_metric": "mean_max_auc"}},
        "versions": {"python": "3.11", "torch": "2.14.1"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def read_gallery(folder: Path) -> dict:
    return json.loads((folder / "report_gallery" / "gallery.json").read_text())


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text(encoding="utf-8")
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += f"{data} "

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag and wanted.items() <= attrs.items()]

    def words(self) -> str:
        return " ".join(self.text.split())
