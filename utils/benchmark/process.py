"""Processes to measure in: a fresh one for each side, so that its peak of memory is its own."""

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any


@functools.cache
def server() -> BaseContext:
    """Forks processes that have imported everything and computed nothing: they start at once, and with little memory."""
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])  # what it imports is there
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils.benchmark.speed", "utils.benchmark.metrics"])
    return context


def fresh_process(start: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    """A process that does one task at a time, and calls `start(*args)` before the first."""
    return ProcessPoolExecutor(1, mp_context=server(), initializer=start, initargs=args)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns or raises, computed in a process of its own."""
    with fresh_process() as process:
        return process.submit(function, *args).result()
