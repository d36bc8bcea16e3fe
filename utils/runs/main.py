"""The main of the tools that train, evaluate or draw: read the configuration, start the process and its log, act, stop."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils.config import load_config
from utils.process.arguments import add_config_arguments, tool_parser
from utils.process.distributed import start_process, stop_process
from utils.process.log import start_log
from utils.runs.per_class import Action, run_per_class


def run_configured(
    path: str | Path,
    overrides: Sequence[str],
    sections: Iterable[str],
    log_name: str,
    action: Action,
    class_name: str | None = None,
    class_paths: Iterable[str] = (),
) -> None:
    """Call `action` with the configuration; with dataset.separate once for each class, unless `class_name` names one.

    The log is <saver.log_dir>/<log_name>.log. sections, class_name, class_paths: see load_config.
    """
    config = load_config(path, overrides, sections, class_name, class_paths)
    process = start_process(config.saver.log_dir, config.port)
    if class_name is None and config.dataset.separate:
        run_per_class(path, overrides, process, log_name, action)
    else:
        start_log(config.saver.log_dir, process, log_name)
        action(config, process)
    stop_process()


def class_parser(description: str) -> argparse.ArgumentParser:
    """The parser of a tool that works on one class: --config, overrides, and either --class_name or --list_classes."""
    parser = tool_parser(description)
    add_config_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--class_name", metavar="CLASS", help="the class to work on; replaces {class_name} in the file's paths")
    what.add_argument("--list_classes", action="store_true", help="print the classes, one a line")
    return parser


def run_for_class(
    args: argparse.Namespace,
    list_classes: Callable[[str, Sequence[str]], list[str]],
    sections: Iterable[str],
    log_name: str,
    action: Action,
    class_paths: Iterable[str] = (),
) -> None:
    """The main of such a tool: print the classes, or call `action` for the class. args: of its `class_parser`."""
    if args.list_classes:
        print(*list_classes(args.config, args.overrides), sep="\n")
    else:
        run_configured(args.config, args.overrides, sections, log_name, action, args.class_name, class_paths)
