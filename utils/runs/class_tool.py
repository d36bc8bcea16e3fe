"""The main of the tools that work for one class: train_vis_decoder.py, vis_recon.py and vis_query.py."""

import argparse
from collections.abc import Callable, Iterable, Sequence

from easydict import EasyDict

from utils.config import load_config
from utils.process.arguments import add_config_arguments, tool_parser
from utils.process.distributed import Process, start_process, stop_process
from utils.process.log import start_log


def class_parser(description: str) -> argparse.ArgumentParser:
    """--config, overrides, and either --class_name or --list_classes."""
    parser = tool_parser(description)
    add_config_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--class_name", metavar="CLASS", help="the class to work on; replaces {class_name} in the file's paths")
    what.add_argument("--list_classes", action="store_true", help="print the classes, one a line")
    return parser


def run_for_class(
    args: argparse.Namespace,
    list_classes: Callable[[str, Sequence[str]], list[str]],
    action: Callable[[EasyDict, Process], None],
    sections: Iterable[str],
    log_name: str,
    class_paths: Iterable[str] = (),
) -> None:
    """Print the classes, or call `action` with the configuration of the class. args: of a `class_parser`.

    sections, class_paths: see load_config.
    """
    if args.list_classes:
        print(*list_classes(args.config, args.overrides), sep="\n")
        return
    config = load_config(args.config, args.overrides, sections, args.class_name, class_paths)
    process = start_process(config.saver.log_dir, config.port)
    start_log(config.saver.log_dir, process, log_name)
    action(config, process)
    stop_process()
