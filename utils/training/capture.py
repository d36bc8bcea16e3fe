"""A training step as one CUDA graph: a GPU is given all its operations at once, and waits for no processor."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

WARM_UP = 3  # plain runs before the recording: libraries allocate what they keep
TOLERANCE = 0.01  # between a recorded and a plain run, of the loss and of the gradients' norm

log = logging.getLogger("uniad")

Step = Callable[[dict[str, Any]], Tensor]  # takes a batch, returns its loss, and leaves the gradients in the parameters


class CapturedStep:
    """`step` recorded at the first full batch, and replayed for each one; a smaller batch is run plainly.

    A recording repeats its operations on the memory that they had: batches are copied into `inputs`, the loss and the gradients
    lie where the recording wrote them. It draws the random numbers that the plain step would draw, as torch's generator of the
    GPU, the only one a step uses, is registered with every recording. The optimiser is not recorded: its learning rates and
    counts stay numbers of Python, in checkpoints too. A recording that does not give what the plain step gives is not used.
    """

    def __init__(self, step: Step, parameters: list[nn.Parameter], batch_size: int, device: torch.device) -> None:
        self.step, self.parameters, self.batch_size, self.device = step, parameters, batch_size, device
        self.replay: Callable[[], None] | None = None
        self.is_usable = True

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        if self.is_usable and self.replay is None and len(batch["filename"]) == self.batch_size:
            self.record(batch)
        if not self.is_usable or len(batch["filename"]) != self.batch_size:
            return self.step(batch)
        for name, tensor in self.inputs.items():
            tensor.copy_(batch[name], non_blocking=True)
        self.replay()
        self.place_gradients()
        return self.loss.clone()

    def place_gradients(self) -> None:
        """Give the parameters the recording's gradients, in place of those of a plain step."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def record(self, batch: dict[str, Any]) -> None:
        """Raises UserError where an operation cannot be recorded. Leaves the random numbers as they were."""
        self.inputs = {name: value.clone() for name, value in batch.items() if isinstance(value, Tensor)}
        try:
            with self.same_numbers():
                self.replay, self.loss = record_graph(lambda: self.step({**batch, **self.inputs}))
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["RuntimeError"])[0]
            raise UserError(f"the step cannot be recorded as a CUDA graph ({reason}): set trainer.cuda_graph=False") from error
        self.gradients = [parameter.grad for parameter in self.parameters]
        with self.same_numbers():
            expected = flat(self.step(batch), self.parameters)
        with self.same_numbers():
            self.replay()
            self.place_gradients()
        found = flat(self.loss, self.parameters)
        self.is_usable = all((a - b).norm() <= TOLERANCE * b.norm() for a, b in zip(found, expected, strict=True))
        if self.is_usable:
            log.info("a training step is one CUDA graph")
        else:
            self.replay, self.gradients = None, []  # frees its memory
            log.warning("a CUDA graph gives another training step: operations are launched one by one (trainer.cuda_graph)")

    def same_numbers(self) -> AbstractContextManager:
        """Random numbers that are drawn inside are drawn again after it."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])


def flat(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients as one vector: copies."""
    return loss.clone(), torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def record_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record `run`; returns what repeats it, and its result, which each repetition overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a thread of the loader may pin memory meanwhile
        result = run()
    return graph.replay, result
