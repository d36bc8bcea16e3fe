"""Images through a predictor in batches, read ahead by several threads; memory holds a few batches at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from utils.errors import UserError
from utils.predict.inputs import Item
from utils.predict.predictor import Predictor

A, B = TypeVar("A"), TypeVar("B")


@dataclass
class Loaded:
    """An image that was read, or why it could not be."""

    file: str
    seconds: float  # that reading and resizing took
    prepared: np.ndarray | None = None  # H x W x 3 uint8, as the engine takes it
    size: tuple[int, int] = (0, 0)  # h, w of the original
    picture: np.ndarray | None = None  # uint8 RGB, the original or smaller, for drawing
    error: str | None = None


@dataclass
class Predicted:
    """What the network said of an image."""

    file: str
    score: float
    anomaly_map: np.ndarray  # H x W float32, at the network's input size
    size: tuple[int, int]
    picture: np.ndarray | None
    latency: float  # seconds: its own reading and resizing, and its share of its batch's time in the network


@dataclass(frozen=True)
class Failed:
    """An image that has no score."""

    file: str
    error: str


def predict_batches(
    predictor: Predictor, items: Iterable[Item], batch_size: int, workers: int, largest: int = 0, ahead: int | None = None
) -> Iterator[list[Predicted | Failed]]:
    """What became of the items, in order, batch by batch.

    largest: pixels of the longer side of `picture`, 0: none. ahead: images that are read before they are needed.
    """
    ahead = batch_size + workers if ahead is None else ahead
    batch: list[Loaded] = []
    for loaded in read_ahead(items, lambda item: load(predictor, item, largest), workers, ahead):
        batch.append(loaded)
        if len(batch) == batch_size:
            yield predict_batch(predictor, batch)
            batch = []
    if batch:
        yield predict_batch(predictor, batch)


def read_ahead(values: Iterable[A], function: Callable[[A], B], workers: int, ahead: int) -> Iterator[B]:
    """map(function, values) by threads, at most `ahead` values before the one that is asked for."""
    with ThreadPoolExecutor(workers) as pool:  # decoding and resizing release the interpreter's lock
        pending = deque()
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def load(predictor: Predictor, item: Item, largest: int) -> Loaded:
    started = time.perf_counter()
    try:
        rgb = item.read()  # h x w x 3
    except UserError as error:
        return Loaded(item.file, 0.0, error=str(error))
    prepared = predictor.prepare(rgb)
    seconds = time.perf_counter() - started
    return Loaded(item.file, seconds, prepared, rgb.shape[:2], shrink(rgb, largest) if largest else None)


def shrink(rgb: np.ndarray, largest: int) -> np.ndarray:
    """At most `largest` pixels on the longer side, in memory of its own."""
    h, w = rgb.shape[:2]
    scale = min(1.0, largest / max(h, w))
    return cv2.resize(rgb, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)


def predict_batch(predictor: Predictor, batch: list[Loaded]) -> list[Predicted | Failed]:
    good = [loaded for loaded in batch if loaded.error is None]
    started = time.perf_counter()
    outputs = iter(zip(*predictor.run([loaded.prepared for loaded in good]), strict=True)) if good else iter(())
    share = (time.perf_counter() - started) / max(1, len(good))
    results: list[Predicted | Failed] = []
    for loaded in batch:
        if loaded.error is not None:
            results.append(Failed(loaded.file, loaded.error))
            continue
        score, anomaly_map = next(outputs)
        if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
            results.append(Failed(loaded.file, "its anomaly map holds values that are not finite"))
            continue
        latency = loaded.seconds + share
        results.append(Predicted(loaded.file, float(score), anomaly_map, loaded.size, loaded.picture, latency))
    return results
