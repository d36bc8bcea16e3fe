"""What tools have in common: how they end, and the arguments of those that work for one class."""

import argparse
import os
import sys
from collections.abc import Callable

from utils.errors import UserError
from utils.memory import keep_freed_memory


def run(main: Callable[[], None]) -> None:
    """Call a tool's `main`; a UserError becomes one line on stderr and exit code 2, Ctrl-C becomes exit code 130."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    prefix = "error: " if rank == "0" else f"error on rank {rank}: "
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        print(f"{prefix}{error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def add_class_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a tool that works for one class at a time."""
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--class_name", metavar="CLASS", help="the class it works for; replaces {class_name} in the file's paths")
    what.add_argument("--list_classes", action="store_true", help="print the classes there are, a line each")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's, by dotted key")
