"""Which samples each process takes, by brute force."""

from collections import Counter
from itertools import chain

import pytest

from datasets.samplers import EvalSampler, TrainSampler

WORLD_SIZES = [1, 2, 3]


def train_parts(num_samples: int, world_size: int, epoch: int = 0, seed: int = 7, clsnames: list[str] | None = None) -> list:
    """The indices of each rank."""
    samplers = [TrainSampler(num_samples, rank, world_size, seed, clsnames) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    parts = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]
    return parts


@pytest.mark.parametrize("num_samples", [1, 2, 11, 12])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_training_takes_every_sample_and_equally_many_in_each_process(num_samples, world_size):
    parts = train_parts(num_samples, world_size)
    counts = Counter(chain(*parts))
    assert len({len(part) for part in parts}) == 1
    assert set(counts) == set(range(num_samples))
    assert 0 <= counts.total() - num_samples < world_size  # padding by less than one round
    assert len({type(index) for index in counts}) == 1
    assert isinstance(next(iter(counts)), int)


def test_one_process_has_no_padding():
    assert sorted(train_parts(11, 1)[0]) == list(range(11))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_joined_batches_are_those_of_one_process_with_a_larger_batch(world_size):
    alone = train_parts(24, 1)[0]
    parts = train_parts(24, world_size)
    batch = 2
    for k in range(24 // (batch * world_size)):
        joined = chain(*(part[k * batch : (k + 1) * batch] for part in parts))
        assert set(joined) == set(alone[k * batch * world_size : (k + 1) * batch * world_size])


def test_padding_continues_from_the_start_of_the_order():
    alone = train_parts(4, 1)[0]
    assert train_parts(4, 3) == [[alone[0], alone[3]], [alone[1], alone[0]], [alone[2], alone[1]]]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("start", [0, 2, 7])
def test_a_resumed_epoch_takes_the_rest_of_its_order_in_every_process(start, world_size):
    for rank, part in enumerate(train_parts(24, world_size, epoch=3)):
        sampler = TrainSampler(24, rank, world_size, seed=7)
        sampler.set_epoch(3, start)
        assert list(sampler) == part[start:]
        assert len(sampler) == len(part)  # of the whole epoch
        sampler.set_epoch(4)
        assert list(sampler) == train_parts(24, world_size, epoch=4)[rank]  # the next one starts at its start


def test_the_order_is_a_function_of_seed_and_epoch():
    assert train_parts(50, 2, epoch=3) == train_parts(50, 2, epoch=3)
    assert train_parts(50, 2, epoch=3) != train_parts(50, 2, epoch=4)
    assert train_parts(50, 2, epoch=3, seed=7) != train_parts(50, 2, epoch=3, seed=8)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_rebalanced_classes_are_drawn_equally_often(world_size):
    clsnames = ["screw"] * 3 + ["pcb"] * 20 + ["tile"] * 13  # 36 samples: 12 of each class
    parts = train_parts(36, world_size, clsnames=clsnames)
    counts = Counter(chain(*parts))
    assert Counter(clsnames[index] for index in chain(*parts)) == {"screw": 12, "pcb": 12, "tile": 12}
    assert [counts[index] for index in range(3)] == [4, 4, 4]  # a small class repeats evenly
    assert max(counts[index] for index in range(3, 36)) == 1  # a large one is sub-sampled


def test_rebalanced_epochs_keep_their_length_and_see_other_parts_of_a_large_class():
    clsnames = ["screw"] * 2 + ["pcb"] * 9  # 11 samples: 6 of one class, 5 of the other
    epochs = [train_parts(11, 1, epoch, clsnames=clsnames)[0] for epoch in range(20)]
    drawn = [Counter(clsnames[index] for index in epoch) for epoch in epochs]
    assert all(sorted(counts.values()) == [5, 6] for counts in drawn)
    assert {counts["screw"] for counts in drawn} == {5, 6}  # the odd one goes to either class
    assert set(chain(*epochs)) == set(range(11))
    assert len({frozenset(epoch) for epoch in epochs}) > 10


def test_rebalanced_classes_are_mixed_within_an_epoch():
    clsnames = ["screw"] * 20 + ["pcb"] * 20
    first_half = train_parts(40, 1, clsnames=clsnames)[0][:20]
    assert {clsnames[index] for index in first_half} == {"screw", "pcb"}


@pytest.mark.parametrize("num_samples", [0, 1, 2, 11, 12])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_evaluation_takes_every_sample_once_and_in_order(num_samples, world_size):
    samplers = [EvalSampler(num_samples, rank, world_size) for rank in range(world_size)]
    parts = [list(sampler) for sampler in samplers]
    assert sorted(chain(*parts)) == list(range(num_samples))
    assert all(part == sorted(part) for part in parts)
    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]
