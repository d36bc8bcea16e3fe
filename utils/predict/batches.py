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
from utils.predict.predictor import Predictor


@dataclass
class Result:
    """One image: as it was read, then its score and map, or why it has none."""

    file: str
    error: str | None = None  # with an error the other fields mean nothing
    latency: float = 0.0  # seconds: reading and resizing it, and its share of its batch's time in the network
    prepared: np.ndarray | None = None  # H x W x 3 uint8, the engine's input
    size: tuple[int, int] = (0, 0)  # h, w of the original
    picture: np.ndarray | None = None  # uint8 RGB for drawing, the original or smaller
    inside: np.ndarray | None = None  # H x W bool, the region of interest; None: all
    score: float = 0.0
    anomaly_map: np.ndarray | None = None  # H x W float32, of the network's input size

    @property
    def inspected(self) -> float:
        """The share of the image that is."""
        return 1.0 if self.inside is None else float(self.inside.mean())


def predict_batches(
    predictor: Predictor, items: Iterable[Item], batch_size: int, workers: int, longest: int = 0, ahead: int | None = None
) -> Iterator[list[Result]]:
    """The results of the items, in order, batch by batch.

    longest: pixels of the longer side of `picture`, 0: no picture. ahead: images that are read before they are needed.
    """
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
        inside = predictor.inside(item.class_name)
    except UserError as error:
        return Result(item.file, str(error))
    prepared = predictor.prepare(rgb)
    latency = time.perf_counter() - started
    picture = shrink(rgb, longest) if longest else None
    return Result(item.file, None, latency, prepared, rgb.shape[:2], picture, inside)


def score_batch(predictor: Predictor, batch: list[Result]) -> None:
    """Add score and map to the images that were read."""
    good = [result for result in batch if result.error is None]
    if not good:
        return
    started = time.perf_counter()
    scores, maps = predictor.engine(np.stack([result.prepared for result in good]), [result.inside for result in good])
    share = (time.perf_counter() - started) / len(good)
    for result, score, anomaly_map in zip(good, scores, maps, strict=True):
        result.score, result.anomaly_map = float(score), anomaly_map
        result.latency += share
        if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
            result.error = "its anomaly map holds values that are not finite"
