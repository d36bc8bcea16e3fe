"""Images through a predictor in batches, read ahead by several threads; memory holds a few batches at a time."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from datasets.images import shrink
from utils.errors import UserError
from utils.predict.inputs import Item
from utils.predict.predictor import Predictor, Prepared


@dataclass
class Result:
    """One image: as it was read, then its score and map, or why it has none."""

    file: str
    error: str | None = None  # with an error the other fields mean nothing
    latency: float = 0.0  # seconds: reading and resizing it, and its share of its batch's time in the network
    prepared: Prepared | None = None  # the engine's input, until it has been scored
    size: tuple[int, int] = (0, 0)  # h, w of the original
    picture: np.ndarray | None = None  # uint8 RGB for drawing, the original or smaller
    inside: np.ndarray | None = None  # H x W bool, the map's region of interest; None: all
    score: float = 0.0
    anomaly_map: np.ndarray | None = None  # H x W float32, as the network gives it, or joined from those of tiles

    @property
    def inspected(self) -> float:
        """The share of the image that is."""
        return 1.0 if self.inside is None else float(self.inside.mean())


def predict_batches(
    predictor: Predictor, items: Iterable[Item], batch_size: int, workers: int, longest: int = 0, ahead: int | None = None
) -> Iterator[list[Result]]:
    """The results of the items, in order, batch by batch.

    longest: pixels of the longer side of `picture`, 0: no picture. ahead: images that are read before they are needed.
    Photographs in tiles, which may be large, go one at a time, and the next is read.
    """
    if predictor.engine.tiles:
        batch_size, ahead = 1, min(1, ahead if ahead is not None else 1)
    results = read_ahead(predictor, items, workers, longest, batch_size + workers if ahead is None else ahead)
    while batch := list(islice(results, batch_size)):
        score_batch(predictor, batch)
        yield batch


def read_ahead(predictor: Predictor, items: Iterable[Item], workers: int, longest: int, ahead: int) -> Iterator[Result]:
    """Each item read by a thread, at most `ahead` items before the one that is asked for."""
    with ThreadPoolExecutor(workers) as pool:  # decoding and resizing release the interpreter's lock
        pending = deque()
        for item in items:
            pending.append(pool.submit(read_item, predictor, item, longest))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def read_item(predictor: Predictor, item: Item, longest: int) -> Result:
    started = time.perf_counter()
    try:
        rgb = item.read()  # h x w x 3
        prepared = predictor.prepare(rgb, item.class_name)
    except UserError as error:
        return Result(item.file, str(error))
    latency = time.perf_counter() - started
    picture = shrink(rgb, longest) if longest else None
    return Result(item.file, None, latency, prepared, rgb.shape[:2], picture)


def score_batch(predictor: Predictor, batch: list[Result]) -> None:
    """Add score and map to the images that were read."""
    good = [result for result in batch if result.error is None]
    if not good:
        return
    started = time.perf_counter()
    scored = predictor.score([result.prepared for result in good])
    share = (time.perf_counter() - started) / len(good)
    for result, (result.score, result.anomaly_map, result.inside) in zip(good, scored, strict=True):
        result.prepared = None
        result.latency += share
        if not (np.isfinite(result.score) and np.isfinite(result.anomaly_map).all()):
            result.error = "its anomaly map holds values that are not finite"
