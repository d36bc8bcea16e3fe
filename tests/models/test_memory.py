"""models.reconstructions.Memory: the distance of a token to the nearest normal one."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from models.reconstructions import Memory
from models.reconstructions.memory import BLOCK, choose, find_nearest, shares
from utils.errors import UserError

IMAGES, CHANNELS, GRID, STRIDE = 6, 5, (4, 3), 2
ALL = 10**6


@pytest.fixture
def normal() -> Tensor:
    """Normal features, N x C x h x w; each channel has its own mean and deviation."""
    scale = torch.tensor([0.1, 1.0, 3.0, 10.0, 100.0])[:, None, None]
    return torch.randn((IMAGES, CHANNELS, *GRID), generator=torch.Generator().manual_seed(0)) * scale + 5 * scale


def filled(features: Tensor, total: int = ALL, seed: int = 0, **kwargs) -> Memory:
    """A memory of the features of two classes, a and b, which take turns."""
    memory = Memory([CHANNELS], [STRIDE], **kwargs)
    tokens = memory.average(features).movedim(1, -1)  # N x h x w x C
    memory.fill({"a": tokens[::2].flatten(0, 2), "b": tokens[1::2].flatten(0, 2)}, total, seed)
    return memory


def averaged(features: Tensor, side: int = 3) -> np.ndarray:
    """The mean of each place's window, zeros outside the grid, computed one by one: N x h x w x C."""
    grids = features.numpy().astype(np.float64).transpose(0, 2, 3, 1)
    (h, w), r = GRID, side // 2
    near = [
        [grids[:, max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1].sum(axis=(1, 2)) / side**2 for x in range(w)]
        for y in range(h)
    ]
    return np.array(near).transpose(2, 0, 1, 3)


# --- the distance


@pytest.mark.parametrize("smooth", [1, 3, 5])
def test_distances_are_those_of_a_brute_force_search(normal: Tensor, smooth: int):
    test = normal[:2].flip(3) * 1.3
    outputs = filled(normal, smooth=smooth)({"feature_align": test})
    stored, queries = (averaged(features, smooth).reshape(-1, CHANNELS) for features in (normal, test))
    stored, queries = stored / (deviation := stored.std(axis=0)), queries / deviation
    distances, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(stored).kneighbors(queries)
    expected = torch.from_numpy(distances).float().reshape(2, 1, *GRID) / CHANNELS**0.5
    torch.testing.assert_close(outputs["distance"], expected, rtol=1e-4, atol=1e-5)


def test_the_reconstruction_is_the_nearest_token_in_the_features_units(normal: Tensor):
    outputs = filled(normal)({"feature_align": normal})
    torch.testing.assert_close(outputs["feature_rec"].movedim(1, -1), torch.from_numpy(averaged(normal)).float())
    torch.testing.assert_close(outputs["distance"], torch.zeros(IMAGES, 1, *GRID), atol=1e-6, rtol=0)


def test_by_angle_tokens_have_length_1_and_a_reconstruction_the_length_of_its_token(normal: Tensor):
    memory, test = filled(normal, distance="angle"), normal[:2].flip(3) * 1.3
    outputs = memory({"feature_align": test})
    stored, queries = (averaged(features).reshape(-1, CHANNELS) for features in (normal, test))
    cosines = (queries @ stored.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(stored, axis=1)
    expected = np.sqrt(2 - 2 * cosines.max(axis=1).clip(max=1)).reshape(2, 1, *GRID)
    np.testing.assert_allclose(outputs["distance"], expected, atol=1e-3)
    given, rebuilt = torch.from_numpy(averaged(test)).float(), outputs["feature_rec"].movedim(1, -1)
    torch.testing.assert_close(rebuilt.norm(dim=-1), given.norm(dim=-1))


def test_the_map_has_the_images_size_and_the_distances_at_its_corners(normal: Tensor):
    outputs = filled(normal, total=5)({"feature_align": normal})
    assert outputs["pred"].shape == (IMAGES, 1, GRID[0] * STRIDE, GRID[1] * STRIDE)
    torch.testing.assert_close(outputs["pred"][..., ::7, ::5], outputs["distance"][..., ::3, ::2])


def test_a_channel_that_never_changes_counts_nothing(normal: Tensor):
    normal[:, 1] = 0.1
    memory = filled(normal, total=20, smooth=1)
    changed = normal.clone()
    changed[:, 1] = 50.0
    before, after = (memory({"feature_align": features}) for features in (normal, changed))
    assert torch.equal(before["distance"], after["distance"])
    assert before["distance"].max() > 0


def test_a_unit_of_distance_is_a_deviation_whatever_the_features_scale(normal: Tensor):
    near, far = (filled(features, total=20)({"feature_align": features})["distance"] for features in (normal, normal * 1024))
    torch.testing.assert_close(near, far)


def test_blocks_of_tokens_find_what_all_at_once_find():
    queries, tokens = torch.randn(40, CHANNELS), torch.randn(2 * BLOCK + 3, CHANNELS)
    assert torch.equal(find_nearest(queries, tokens), torch.cdist(queries, tokens).argmin(dim=1))


def test_an_images_numbers_do_not_depend_on_its_batch():
    memory, images = Memory([64], [8]), torch.randn(9, 64, 14, 14)
    memory.fill({"a": torch.randn(3000, 64)}, ALL, seed=0)
    whole = memory({"feature_align": images})
    for batch in (1, 2, 4):
        parts = [memory({"feature_align": part})["distance"] for part in images.split(batch)]
        assert torch.equal(torch.cat(parts), whole["distance"])


def test_in_autocast_the_search_stays_exact(normal: Tensor):
    memory = filled(normal, total=20)
    expected = memory({"feature_align": normal})["distance"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(memory({"feature_align": normal})["distance"], expected)


# --- the tokens


def test_a_greedy_coreset_is_farther_apart_than_a_random_one_and_covers_every_cluster():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 16, generator=generator) * 100
    crowd = torch.cat([centres[:1].expand(2000, -1), centres[1:].expand(19, -1)]) + torch.randn(2019, 16, generator=generator)
    greedy, random = (crowd[choose(crowd, 20, coreset, seed=0)] for coreset in ("greedy", "random"))
    found = [torch.cdist(centres, tokens).min(dim=1).values.max() for tokens in (greedy, random)]
    assert found[0] < 10 < found[1]


@pytest.mark.parametrize("coreset", ["greedy", "random"])
def test_a_seed_chooses_the_same_tokens_again_another_seed_others_and_none_twice(coreset: str):
    tokens = torch.randn(200, CHANNELS, generator=torch.Generator().manual_seed(0))
    first, again, other = (choose(tokens, 50, coreset, seed).sort().values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 50


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ({"a": 100, "b": 100}, 50, {"a": 25, "b": 25}),
        ({"a": 100, "b": 4, "c": 100}, 60, {"a": 28, "b": 4, "c": 28}),
        ({"a": 3, "b": 4}, 60, {"a": 3, "b": 4}),
    ],
)
def test_classes_have_equal_shares_and_what_a_small_one_leaves_goes_to_the_others(counts: dict, total: int, expected: dict):
    assert shares(counts, total) == expected


def test_a_class_that_is_added_leaves_what_is_there_as_it_is(normal: Tensor):
    memory = filled(normal, total=20)
    tokens, mean, deviation = memory.tokens.clone(), memory.mean.clone(), memory.deviation.clone()
    memory.fill({"c": torch.randn(30, CHANNELS)}, 10, seed=0)
    assert torch.equal(memory.tokens[:20], tokens)
    assert torch.equal(memory.mean, mean)
    assert torch.equal(memory.deviation, deviation)
    assert memory.classes == ["a", "b", "c"]
    assert memory.owner.bincount().tolist() == [10, 10, 10]


def test_the_memory_of_one_class_compares_with_that_class_only(normal: Tensor):
    memory = filled(normal)
    memory.only = "a"
    distance = memory({"feature_align": normal})["distance"].flatten(1).max(dim=1).values
    assert distance[::2].max() < 1e-5 < distance[1::2].min()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Memory([CHANNELS], [STRIDE], smooth=2), "smooth 2 must be odd"),
        (lambda: Memory([CHANNELS], [STRIDE]).compared(), "holds no tokens: train first"),
        (lambda: shares({"a": 9, "b": 9}, 1), "1 tokens are less than one for each of 2 classes"),
    ],
)
def test_what_cannot_be_is_one_clear_line(act, message: str):
    with pytest.raises(UserError, match=message):
        act()


def test_an_unknown_class_is_named_beside_those_there_are(normal: Tensor):
    memory = filled(normal)
    memory.only = "z"
    with pytest.raises(UserError, match="the memory has no class 'z': its classes are a, b"):
        memory.compared()
