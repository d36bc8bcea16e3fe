"""Samplers: which samples a process takes, and in which order."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[int]):
    """A new random order every epoch, which depends on (seed, epoch) only, distributed over the processes.

    Rank r takes every world_size-th index, so that the k-th batches of all ranks together equal the k-th batch of one process
    with a batch world_size times as large. If the samples do not divide evenly, the order is repeated from its start, so that
    all ranks take the same number. With `clsnames`, one name per sample, every class is drawn equally often in an epoch of the
    same length: small classes repeat, and each epoch sees a different part of large ones. A resumed epoch starts in the middle
    of its order; len() is that of the whole epoch.
    """

    def __init__(self, num_samples: int, rank: int, world_size: int, seed: int, clsnames: list[str] | None = None) -> None:
        self.num_samples = num_samples
        self.rank, self.world_size = rank, world_size
        self.seed = seed
        self.epoch, self.start = 0, 0
        self.members = None
        if clsnames is not None:
            names = np.array(clsnames)
            self.members = [np.flatnonzero(names == name) for name in np.unique(names)]  # the indices of each class

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order of `epoch`; each process skips its first `start` samples."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.num_samples if self.members is None else self._balanced(rng))
        order = np.resize(order, len(self) * self.world_size)  # repeats the order from its start
        return iter(order[self.rank :: self.world_size][self.start :].tolist())

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        """num_samples indices, the same number of each class; a remainder goes to random classes."""
        quota, rest = divmod(self.num_samples, len(self.members))
        drawn = []
        for place, i in enumerate(rng.permutation(len(self.members))):
            count = quota + (place < rest)
            rounds = -(-count // len(self.members[i]))
            drawn.append(np.concatenate([rng.permutation(self.members[i]) for _ in range(rounds)])[:count])
        return np.concatenate(drawn)


class EvalSampler(Sampler[int]):
    """Every sample exactly once over all processes, in order: rank r takes r, r + world_size, …, without padding."""

    def __init__(self, num_samples: int, rank: int, world_size: int) -> None:
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
