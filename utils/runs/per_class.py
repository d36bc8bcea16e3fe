"""One model a class, for comparison with one for all: what train_val.py does with dataset.separate."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from easydict import EasyDict

from datasets.lists import read_list
from utils.config import load_config
from utils.errors import UserError
from utils.process.distributed import Process
from utils.process.log import start_log

# What a class's model reads and writes lies below <configuration's folder>/<class>/; save_recon's folder too.
OUTPUTS = ("saver.save_dir", "saver.log_dir", "saver.load_path", "evaluator.save_dir")
PICTURES = ("evaluator.vis_compound.save_dir", "evaluator.vis_single.save_dir")

log = logging.getLogger("uniad")


def run_separately(
    path: str | Path, overrides: Sequence[str], process: Process, name: str, action: Callable[[EasyDict, Process], None]
) -> None:
    """Call `action`, training or evaluation, for each class of the training list, or for dataset.class_name alone.

    Each has its log, <log_dir>/<name>.log, below its folder. After all classes the joined table is printed, and written to
    the configuration's own evaluator.save_dir. Every process must call it. Raises UserError naming the class that fails.
    """
    config = load_config(path, overrides)
    configs = class_configs(path, overrides, config)
    for number, (clsname, of_class) in enumerate(configs.items(), 1):
        start_log(of_class.saver.log_dir, process, name)
        log.info("class %s, %d of %d", clsname, number, len(configs))
        try:
            action(of_class, process)
        except UserError as error:
            raise UserError(f"class {clsname}: {error}") from None
    if config.dataset.class_name is None and process.is_main:
        from utils.report.summary import write_joined  # here: it imports a plotting library, which takes a second

        start_log(config.saver.log_dir, process, name)
        folder = config.evaluator.save_dir
        table = write_joined([of_class.evaluator.save_dir for of_class in configs.values()], folder)
        log.info("one model a class, %d classes; written to %s\n%s", len(configs), folder, table)


def class_configs(path: str | Path, overrides: Sequence[str], config: EasyDict) -> dict[str, EasyDict]:
    """The configuration of each class, sorted. Raises UserError for what would stop one of them later."""
    classes, tested = ({r["clsname"] for r in read_list(meta_file(config, split))} for split in ("train", "test"))
    if config.dataset.class_name is not None:
        classes &= {config.dataset.class_name}
    if missing := sorted(classes - tested) or ([] if classes else [config.dataset.class_name]):
        split = "test" if classes else "train"
        raise UserError(f"{meta_file(config, split)} has no image of the class '{missing[0]}'; dataset.separate needs some")
    recon = f"net.{config.net[2].name}.kwargs.save_recon.save_dir"
    class_paths = (*OUTPUTS, *PICTURES, recon)
    configs = {}
    for clsname in sorted(classes):
        configs[clsname] = load_config(path, [*overrides, "dataset.separate=False"], (), clsname, class_paths)
        check_paths(configs[clsname], Path(path).resolve().parent / clsname)
    return configs


def meta_file(config: EasyDict, split: str) -> str:
    return {**config.dataset, **config.dataset[split]}["meta_file"]


def check_paths(config: EasyDict, folder: Path) -> None:
    """Raises UserError for a path of the class that is not below its folder: other classes would have it too."""
    for dotted in OUTPUTS:
        section, key = dotted.split(".")
        if not Path(config[section][key]).is_relative_to(folder):
            raise UserError(
                f"{dotted} {config[section][key]} would be shared by all classes: with dataset.separate it lies below CLASS/, "
                "give a path relative to the configuration's folder"
            )
