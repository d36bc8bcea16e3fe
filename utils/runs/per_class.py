"""One model a class, for comparison with one for all: dataset.separate of train_val.py."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from easydict import EasyDict

from datasets.lists import read_list
from utils.config import load_config
from utils.errors import UserError
from utils.process.distributed import Process
from utils.process.log import start_log

# The model of a class reads and writes below <configuration's folder>/<class>/; so does save_recon.
OUTPUTS = ("saver.save_dir", "saver.log_dir", "saver.load_path", "evaluator.save_dir")
PICTURES = ("evaluator.vis_compound.save_dir", "evaluator.vis_single.save_dir")

Action = Callable[[EasyDict, Process], None]

log = logging.getLogger("uniad")


def run_per_class(path: str | Path, overrides: Sequence[str], process: Process, name: str, action: Action) -> None:
    """Call `action` for each class of the training list, or for dataset.class_name alone.

    Each class logs to <log_dir>/<name>.log below its folder. After all classes the joined table is printed, and written to
    the configuration's own evaluator.save_dir. Every process must call it. Raises UserError naming the class that fails.
    """
    config = load_config(path, overrides)
    configs = class_configs(path, overrides, config)
    for number, (clsname, class_config) in enumerate(configs.items(), 1):
        start_log(class_config.saver.log_dir, process, name)
        log.info("class %s, %d of %d", clsname, number, len(configs))
        try:
            action(class_config, process)
        except UserError as error:
            raise UserError(f"class {clsname}: {error}") from None
    if config.dataset.class_name is None and process.is_main:
        from utils.report.summary import write_joined  # here: it imports a plotting library, which takes a second

        start_log(config.saver.log_dir, process, name)
        folder = config.evaluator.save_dir
        table = write_joined([class_config.evaluator.save_dir for class_config in configs.values()], folder)
        log.info("one model a class, %d classes; written to %s\n%s", len(configs), folder, table)


def class_configs(path: str | Path, overrides: Sequence[str], config: EasyDict) -> dict[str, EasyDict]:
    """The configuration of each class, sorted.

    Raises UserError for a class without training or test images, and for an output path that all classes would share.
    """
    classes = None if config.dataset.class_name is None else {config.dataset.class_name}
    for split in ("train", "test"):
        meta_file = {**config.dataset, **config.dataset[split]}["meta_file"]
        if meta_file is None:
            raise UserError(f"dataset.{split}.meta_file is missing; dataset.separate needs it")
        listed = {record["clsname"] for record in read_list(meta_file)}
        classes = listed if classes is None else classes
        if missing := sorted(classes - listed):
            raise UserError(f"{meta_file} has no image of the class '{missing[0]}'; dataset.separate needs some")
    class_paths = (*OUTPUTS, *PICTURES, *(f"net.{subnet.name}.kwargs.save_recon.save_dir" for subnet in config.net))
    configs = {}
    for clsname in sorted(classes):
        configs[clsname] = load_config(path, [*overrides, "dataset.separate=False"], (), clsname, class_paths)
        for section, key in (dotted.split(".") for dotted in OUTPUTS):
            output = configs[clsname][section][key]
            if not Path(output).is_relative_to(Path(config.run_dir or Path(path).resolve().parent) / clsname):
                raise UserError(
                    f"{section}.{key} {output} would be shared by all classes: with dataset.separate it lies below CLASS/, "
                    "give a path relative to the configuration's folder"
                )
    return configs
