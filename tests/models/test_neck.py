"""MFCN: feature maps of several strides on one grid."""

import pytest
import torch

from models.necks import MFCN
from tests.helpers.golden_cases import CASES, GOLDEN, golden_input


def test_the_features_are_aligned_as_published():
    case = CASES["mfcn"]
    neck = MFCN(case["inplanes"], [sum(case["inplanes"])], case["instrides"], case["outstrides"])
    features = [golden_input(*seed_and_shape) for seed_and_shape in zip(case["input_seeds"], case["input_shapes"], strict=True)]
    aligned = neck({"features": features})["feature_align"]
    torch.testing.assert_close(aligned, torch.from_numpy(GOLDEN["mfcn/feature_align"]), rtol=0, atol=1e-5)


def test_mvtec_s_layers_meet_on_a_grid_of_14_by_14():
    inplanes, instrides = [24, 32, 56, 160], [2, 4, 8, 16]
    neck = MFCN(inplanes, [272], instrides, [16])
    features = [torch.zeros(2, planes, 224 // stride, 224 // stride) for planes, stride in zip(inplanes, instrides, strict=True)]
    assert neck({"features": features})["feature_align"].shape == (2, 272, 14, 14)
    assert (neck.outplanes, neck.outstrides) == ([272], [16])


def test_a_map_already_at_the_stride_is_not_touched():
    feature = golden_input(1, [1, 5, 4, 6])
    assert torch.equal(MFCN([5], [5], [16], [16])({"features": [feature]})["feature_align"], feature)


def test_corners_keep_their_values():
    feature = golden_input(2, [1, 3, 8, 8])
    aligned = MFCN([3], [3], [4], [8])({"features": [feature]})["feature_align"]
    torch.testing.assert_close(aligned[..., [0, 0, -1, -1], [0, -1, 0, -1]], feature[..., [0, 0, -1, -1], [0, -1, 0, -1]])


def test_it_has_no_parameters():
    assert not MFCN([3, 4], [7], [4, 8], [8]).state_dict()


@pytest.mark.parametrize(
    ("inplanes", "outplanes", "instrides", "outstrides", "word"),
    [
        ([8, 8], [17], [4, 8], [8], "outplanes"),
        ([8, 8], [8, 8], [4, 8], [8], "outplanes"),
        ([8, 8], [16], [4, 8], [8, 8], "outstrides"),
        ([8, 8], [16], [4], [8], "instrides"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(inplanes, outplanes, instrides, outstrides, word):
    with pytest.raises(ValueError, match=word):
        MFCN(inplanes, outplanes, instrides, outstrides)
