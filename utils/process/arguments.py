"""Command-line arguments that several tools share. Nothing here imports torch."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

from utils.errors import UserError
from utils.limits import WHOLE


class Parser(argparse.ArgumentParser):
    """Its errors are as short as all others; an empty argument is one, not the current folder."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        args = sys.argv[1:] if args is None else [*args]
        if "" in args:
            self.error(f"argument {args.index('') + 1} is empty; is a variable of the shell not set?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        super().error(str(UserError(message)))


def tool_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring as it is written."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Parse with `parse_intermixed_args`: overrides may stand before and after options."""
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's, by dotted key")


def positive_int(text: str) -> int:
    number = int(text)
    if not 1 <= number <= WHOLE:
        raise argparse.ArgumentTypeError("must be at least 1" if number < 1 else "is too large")
    return number


def finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError("must be a finite number")
    return number


def open_share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return number


def percent(text: str) -> float:
    """As a share."""
    number = float(text) / 100
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError("must be at least 0 and less than 100")
    return number
