"""Add classes to the memory of a checkpoint, and measure what that does to the scores of the classes that were there."""

import logging
from pathlib import Path

import numpy as np
import torch

from datasets.base import ImageDataset
from datasets.build import build_dataset
from datasets.tiled import in_tiles
from models.losses import Criterion
from utils.config import to_plain
from utils.errors import UserError
from utils.evaluation.evaluate import Evaluation, evaluate
from utils.evaluation.metrics import auroc, rank_images
from utils.evaluation.results import align_table
from utils.files import check_writable
from utils.predict.torch_engine import TorchEngine
from utils.process.checkpoint import load_checkpoint, network_state, save_checkpoint
from utils.process.distributed import Process
from utils.process.signals import StopSignals
from utils.runs.start import build_loader
from utils.training.memory import MemoryFiller

HEADER = ("class", "AUROC before", "after", "good, mean score before", "after", "defective, before", "after")

log = logging.getLogger("uniad")


def add_classes(
    checkpoint: str | Path,
    meta_file: str | Path,
    image_dir: str | Path | None = None,
    tokens: int | None = None,
    out: str | Path | None = None,
) -> str:
    """Write the checkpoint with the classes of the list `meta_file` in its memory too; returns what changed, as a table.

    image_dir: the folder of the list's images, if not that of the training. tokens: for each class; None: as many as the classes
    there have on average. out: the file to write; None: beside the checkpoint, with the classes in its name. Raises UserError for
    a checkpoint without a memory, for defective images, and for a class that is there already.
    """
    checkpoint, content = Path(checkpoint), load_checkpoint(checkpoint)
    engine = TorchEngine(checkpoint)
    if engine.memory is None:
        raise UserError(f"{checkpoint}: its network has no memory to add a class to; that is for models.reconstructions.Memory")
    memory, there = engine.memory, engine.memory.classes
    data = new_images(engine, meta_file, image_dir)
    new = sorted(set(data.clsnames))
    if known := [name for name in new if name in there]:
        raise UserError(f"{meta_file}: the memory has the class {known[0]} already; its classes are {', '.join(there)}")
    name = f"{checkpoint.name.removesuffix('.pth.tar')}+{'+'.join(new).replace('/', '_')}.pth.tar"
    out = Path(out or checkpoint.with_name(name))
    check_writable(out.parent)
    process = Process(device=engine.device)
    before = evaluate_test_set(engine, process)
    total = len(new) * (tokens or max(1, len(memory.tokens) // len(there)))
    config = to_plain(engine.config)
    filler = MemoryFiller(engine.network, torch.nn.Identity(), config, process, config.get("random_seed") or 0)
    samples = filler.gather(build_loader(in_tiles(data), engine.config, "test", process), total, StopSignals())
    memory.fill(samples, total, filler.seed)
    save_checkpoint(out, {**content, "state_dict": network_state(engine.network)})
    lines = [f"{out}: {', '.join(new)} added from {len(data)} images; the memory has {len(memory.tokens)} tokens"]
    if before is None:
        return "\n".join([*lines, "no test images of the other classes are at hand, so their scores were not compared"])
    after = evaluate_test_set(engine, process)
    return "\n".join([*lines, compare(before, after, engine)])


def new_images(engine: TorchEngine, meta_file: str | Path, image_dir: str | Path | None) -> ImageDataset:
    """The images of the list, to be read once each and in order."""
    dataset = to_plain(engine.config.dataset)
    if dataset["type"] != "custom":
        raise UserError(f"classes are added from a list, for data sets of type custom, not {dataset['type']}")
    dataset = {**dataset, **dataset["test"], "test": {}, "meta_file": str(meta_file), "class_name": None}
    if image_dir is not None:
        dataset["image_reader"]["kwargs"]["image_dir"] = str(image_dir)
    data = build_dataset(dataset, "test")
    if 1 in data.labels:
        name = data.filenames[data.labels.index(1)]
        raise UserError(f"{meta_file}: {name} is defective (label 1); a memory is of normal images")
    return data


def evaluate_test_set(engine: TorchEngine, process: Process) -> Evaluation | None:
    """The checkpoint's own test set; None where its list or images are gone."""
    try:
        data = build_dataset(to_plain(engine.config.dataset), "test")
    except UserError as error:
        log.info("%s", error)
        return None
    loader = build_loader(in_tiles(data), engine.config, "test", process)
    return evaluate(
        engine.network, loader, Criterion(engine.config.criterion), process, precision=engine.precision, form=engine.form
    )


def compare(before: Evaluation, after: Evaluation, engine: TorchEngine) -> str:
    """A row for each class of the test set and their mean, by the score that prediction uses."""
    scores = [evaluation.scores([engine.score_key])[engine.score_key] for evaluation in (before, after)]
    rows = {}
    for name in sorted(set(before.clsnames.tolist())):
        chosen = before.clsnames == name
        labels, values = before.labels[chosen], [score[chosen] for score in scores]
        rankings = [rank_images(value, labels) for value in values]
        means = [value[labels == label].mean() if np.any(labels == label) else np.nan for label in (0, 1) for value in values]
        rows[name] = [auroc(ranking) if ranking else np.nan for ranking in rankings] + means
    rows["mean"] = np.nanmean(list(rows.values()), axis=0)
    return align_table(HEADER, [[name, *(f"{number:.4f}" for number in numbers)] for name, numbers in rows.items()])
