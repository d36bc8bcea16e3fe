"""One network for many callers: what waits is scored together, one batch at a time."""

import queue
import threading
from concurrent.futures import Future

from utils.predict.batches import Result, score_batch
from utils.predict.predictor import Predictor


class Batcher:
    """A thread that runs the network. An image alone is scored at once; images that pile up are scored in batches."""

    def __init__(self, predictor: Predictor, batch_size: int) -> None:
        self.predictor, self.batch_size = predictor, batch_size
        self.waiting: queue.SimpleQueue[tuple[Result, Future] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="network", daemon=True)
        self.thread.start()

    def submit(self, result: Result) -> "Future[Result]":
        """result: an image that was read (utils.predict.batches.read_item). The future's result has score and map too."""
        future: Future[Result] = Future()
        self.waiting.put((result, future))
        return future

    def close(self) -> None:
        """Score what waits, then end."""
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch, is_last = [first], False
            while len(batch) < self.batch_size and not self.waiting.empty():
                if (item := self.waiting.get()) is None:
                    is_last = True
                    break
                batch.append(item)
            # a caller that gave up has cancelled its future
            batch = [(result, future) for result, future in batch if future.set_running_or_notify_cancel()]
            try:
                score_batch(self.predictor, [result for result, _ in batch])
            except Exception as error:  # whatever it is, each caller gets it and the service goes on
                for _, future in batch:
                    future.set_exception(error)
            else:
                for result, future in batch:
                    future.set_result(result)
            if is_last:
                return
