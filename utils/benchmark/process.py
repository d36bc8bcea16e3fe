"""A fresh process for each measurement, so that its peak of memory is its own."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# Processes are forked from a server that has imported everything and computed nothing: they start fast, with little memory.
PRELOADED = ["utils.benchmark.speed", "utils.benchmark.metrics"]


def fresh_process(start: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    """A process that runs one task at a time. It calls `start(*args)` before the first."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):  # where the server looks for modules
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=args)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns or raises in a fresh process."""
    with fresh_process() as process:
        return process.submit(function, *args).result()
