"""The section evaluator.map: how a network's map is finished, and the mask with it."""

import numpy as np
import pytest
import torch

from utils.evaluation.maps import PLAIN, MapForm

MAP = torch.rand((1, 1, 12, 18), generator=torch.Generator().manual_seed(0))


def test_without_the_section_maps_and_masks_stay_as_they_are() -> None:
    for evaluator in (None, {}, {"map": None}, {"map": {"size": None, "sigma": None}}, {"map": {"size": None, "sigma": 0}}):
        form = MapForm.of(evaluator)
        assert form(MAP) is MAP
        assert form.mask(MAP) is MAP
    assert MapForm.of(None) == PLAIN


def test_a_size_resizes_bilinearly_and_masks_take_the_nearest_pixel() -> None:
    form = MapForm.of({"map": {"size": [6, 9], "sigma": None}})
    halved = MAP.unflatten(3, (9, 2)).unflatten(2, (6, 2)).mean(dim=(3, 5))  # at half the size bilinear is the mean of 2 x 2
    torch.testing.assert_close(form(MAP), halved)
    mask = (MAP > 0.7).float()
    assert torch.equal(form.mask(mask), mask[:, :, ::2, ::2])
    assert set(form.mask(mask).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("sigma", [0.5, 4.0])
def test_sigma_takes_the_gaussian_mean_of_a_5_x_5_window_with_zeros_around_the_map(sigma: float) -> None:
    smoothed = MapForm(sigma=sigma)(MAP)[0, 0].numpy()
    padded = np.pad(MAP[0, 0].numpy().astype(float), 2)
    weights = {(y, x): np.exp(-(y * y + x * x) / (2 * sigma**2)) for y in range(-2, 3) for x in range(-2, 3)}
    total = sum(weights.values())
    for row in range(12):
        for column in range(18):
            expected = sum(w * padded[row + 2 + y, column + 2 + x] for (y, x), w in weights.items()) / total
            assert smoothed[row, column] == pytest.approx(expected, rel=1e-5)


def test_the_map_is_resized_before_it_is_smoothed() -> None:
    both = MapForm((6, 9), 4.0)(MAP)
    assert torch.equal(both, MapForm(sigma=4.0)(MapForm((6, 9))(MAP)))
    assert not torch.allclose(both, MapForm((6, 9))(MapForm(sigma=4.0)(MAP)))
