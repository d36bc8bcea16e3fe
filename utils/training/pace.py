"""The time that a training will take, from its first steps."""

import time
from collections.abc import Callable

STEPS = 10


class Pace:
    """The rate of a run's first steps. The very first, which also starts what later ones use, is left out."""

    def __init__(self) -> None:
        self.steps, self.started = 0, 0.0

    def count_step(self, wait: Callable[[], None]) -> float | None:
        """Seconds a step, after the last of STEPS; else None. `wait` waits until the steps so far are done."""
        self.steps += 1
        if self.steps in (1, STEPS):
            wait()
        if self.steps == 1:
            self.started = time.monotonic()
        return (time.monotonic() - self.started) / (STEPS - 1) if self.steps == STEPS else None


def in_words(seconds: float) -> str:
    """In the two largest units: 2 d 3 h, 4 h 5 min, 6 min, 7 s."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 100 else f"{seconds:.0f} s"
