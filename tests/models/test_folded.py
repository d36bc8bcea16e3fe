"""A backbone that only reads runs in a folded form: the same features, from the same weights, whatever happens to them."""

import copy

import pytest
import torch

from tests.helpers.backbones import build, features_of, poisoned
from tests.helpers.golden_cases import golden_input, golden_weights


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", "efficientnet_b4", "efficientnet_lite1"])
@pytest.mark.parametrize("side", [64, 75])
def test_a_frozen_backbone_gives_the_features_of_a_trainable_one(name, side):
    backbone = golden_weights(build(name, 1, 2, 3, 4, 5))
    image = golden_input(5, [2, 3, side, side])
    trainable = backbone({"image": image})["features"]
    frozen = backbone.requires_grad_(False)({"image": image})["features"]
    for expected, feature in zip(trainable, frozen, strict=True):
        torch.testing.assert_close(feature, expected.detach(), rtol=0, atol=1e-6 * expected.abs().max().item())


def test_a_frozen_backbone_keeps_no_graph_and_a_trainable_one_trains():
    backbone = golden_weights(build("efficientnet_b0", 1, 2))
    image = golden_input(6, [1, 3, 64, 64])
    sum(feature.sum() for feature in backbone({"image": image})["features"]).backward()
    assert backbone._conv_stem.weight.grad.abs().max() > 0
    backbone.requires_grad_(False)
    assert not any(feature.requires_grad for feature in backbone({"image": image})["features"])
    backbone({"image": image.requires_grad_()})["features"][0].sum().backward()  # gradients of the image are given if wanted
    assert image.grad.abs().max() > 0


def test_new_weights_are_seen_by_a_frozen_backbone():
    image = golden_input(7, [1, 3, 64, 64])
    backbone, other = build("efficientnet_b0", 1), golden_weights(build("efficientnet_b0", 1))
    features_of(backbone, image)
    backbone.load_state_dict(other.state_dict())
    torch.testing.assert_close(features_of(backbone, image), features_of(other, image), rtol=0, atol=0)
    before = features_of(backbone, image)[0]
    with torch.no_grad():
        backbone._bn0.running_mean += 1  # as training does
    assert (features_of(backbone, image)[0] - before).abs().max() > 1e-3
    assert features_of(backbone.double(), image.double())[0].dtype == torch.float64
    assert len(backbone.state_dict()) == len(other.state_dict())


def test_a_copy_of_a_frozen_backbone_reads_its_own_weights():
    image = golden_input(8, [1, 3, 64, 64])
    backbone = golden_weights(build("efficientnet_b0", 1))
    before = features_of(backbone, image)[0]
    poisoned(copied := copy.deepcopy(backbone), copied)
    assert features_of(copied, image)[0].isnan().all()
    assert torch.equal(features_of(backbone, image)[0], before)


def test_in_bfloat16_features_stay_within_a_hundredth_of_their_range():
    image = golden_input(9, [1, 3, 64, 64])
    backbone = golden_weights(build("efficientnet_b0", 1, 2, 3, 4))
    exact = features_of(backbone, image)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = features_of(backbone, image)
    for expected, feature in zip(exact, rounded, strict=True):
        assert feature.dtype == torch.bfloat16
        assert (feature - expected).abs().max() < 0.01 * (expected.max() - expected.min())
