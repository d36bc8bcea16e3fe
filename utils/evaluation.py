"""Evaluation: run a network over a test set in order, gather what it says, and report it as tables and files."""

import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.distributed import Process, gather, to_device
from utils.errors import UserError
from utils.files import write_atomically, write_text
from utils.metrics import METRIC_KINDS, evaluate_maps, image_scores
from utils.naming import feature_names
from utils.precision import autocast

GALLERY = "report_gallery"  # of the result folder: the pictures in its report


@dataclass
class Evaluation:
    """What a network said of a test set, in the data set's order."""

    indices: np.ndarray  # N, position in the data set
    maps: np.ndarray  # N x H x W float32, anomaly maps
    masks: np.ndarray  # N x H x W uint8 of {0, 1}
    labels: np.ndarray  # N of {0, 1}
    losses: np.ndarray  # N, the loss of the image's batch
    clsnames: np.ndarray  # N texts
    filenames: np.ndarray  # N texts

    @classmethod
    def join(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """All parts as one, in the data set's order."""
        joined = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        order = np.argsort(joined["indices"])
        return cls(**{name: values[order] for name, values in joined.items()})


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: DataLoader,
    criterion: nn.Module,
    process: Process,
    recon_dir: str | Path | None = None,
    precision: torch.dtype = torch.float32,
) -> Evaluation | None:
    """Run the network in eval mode over every image of `loader`, whose sampler gives each process its own share.

    Returns the whole set's outputs on rank 0 and None elsewhere; every process must call it. With `recon_dir`, reconstructed
    features are saved there as <class>/<kind>/<name>.npy, Cxhxw float32. Raises UserError naming the image for a map that is
    not finite.
    """
    network.eval()
    parts = []
    names = feature_names(loader.dataset.filenames, loader.dataset.clsnames) if recon_dir is not None else []
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=None if process.is_main else True):
        with autocast(process.device, precision):
            outputs = network(to_device(batch, process.device))
        maps = outputs["pred"].squeeze(1).float().cpu()  # B x H x W
        finite = maps.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise UserError(f"{batch['filename'][int(finite.int().argmin())]}: its anomaly map holds values that are not finite")
        if recon_dir is not None:
            save_reconstructions(outputs["feature_rec"], [Path(recon_dir) / names[index] for index in batch["index"]])
        parts.append(
            Evaluation(
                indices=batch["index"].numpy(),
                maps=maps.numpy(),
                masks=batch["mask"].squeeze(1).numpy().astype(np.uint8),
                labels=batch["label"].numpy(),
                losses=np.full(len(maps), criterion(outputs).item()),
                clsnames=np.array(batch["clsname"], dtype=object),
                filenames=np.array(batch["filename"], dtype=object),
            )
        )
    gathered = gather(parts, process)
    return None if gathered is None else Evaluation.join([part for share in gathered for part in share])


def save_reconstructions(feature_rec: Tensor, paths: Sequence[Path]) -> None:
    """feature_rec: BxCxhxw; one file an image, <path>.npy, Cxhxw float32."""
    for features, path in zip(feature_rec.float().cpu().numpy(), paths, strict=True):
        write_atomically(f"{path}.npy", lambda file, features=features: np.save(file, features))


def compute_metrics(evaluation: Evaluation, metrics: dict[str, Any]) -> dict[str, float]:
    """evaluate_maps on what a network said."""
    return evaluate_maps(evaluation.maps, evaluation.masks, evaluation.labels, evaluation.clsnames, metrics)


def format_table(results: dict[str, float], metrics: dict[str, Any]) -> str:
    """The results as a table: a row a class, sorted, then their mean; a column a metric, in the configuration's order."""
    columns = [(score["name"], kind) for kind in METRIC_KINDS for score in metrics.get(kind) or ()]
    only_auc = all(kind == "auc" for _, kind in columns)
    header = ["clsname", *(name if only_auc else f"{name}_{kind}" for name, kind in columns)]
    name, kind = columns[0]
    classes = [key.removesuffix(f"_{name}_{kind}") for key in results if key.endswith(f"_{name}_{kind}")]
    rows = [[clsname, *(f"{results[f'{clsname}_{n}_{k}']:.4f}" for n, k in columns)] for clsname in classes]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(cells))

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])])


def missing_metrics(results: dict[str, float]) -> list[str]:
    """The keys without a number: their class has images of one label only, or no masks."""
    return [key for key, value in results.items() if math.isnan(value)]


def without_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    """The numbers as JSON has them: nan becomes null."""
    return {key: None if math.isnan(value) else value for key, value in numbers.items()}


def write_results(folder: str | Path, evaluation: Evaluation, results: dict[str, float], metrics: dict[str, Any]) -> None:
    """Write metrics.json (nan as null), table.txt and scores.csv, a line an image, into the result folder."""
    folder = Path(folder)
    write_text(folder / "metrics.json", json.dumps(without_nan(results), indent=1) + "\n")
    for name in ("report.html", "run.json"):  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / GALLERY, ignore_errors=True)
    write_text(folder / "table.txt", format_table(results, metrics) + "\n")

    scores = {}
    for kind in METRIC_KINDS:
        for score in metrics.get(kind) or ():
            if score["name"] != "pixel":
                scores[score["name"]] = image_scores(evaluation.maps, score["name"], score["kwargs"]["avgpool_size"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["filename", "clsname", "label", *scores])
    columns = (evaluation.filenames, evaluation.clsnames, evaluation.labels, *([f"{v:.8g}" for v in s] for s in scores.values()))
    writer.writerows(zip(*columns, strict=True))
    write_text(folder / "scores.csv", text.getvalue())
