"""VisDecoder: from a feature grid to the image."""

import pytest
import torch

from models.reconstructions import VisDecoder
from tests.helpers.golden_cases import CASES, GOLDEN, golden_input, golden_weights
from utils.errors import UserError


def draw(decoder, features):
    with torch.no_grad():
        return decoder.eval()({"feature_align": features})["image_rec"]


def test_the_image_is_the_published_one():
    case = CASES["vis_decoder"]
    decoder = golden_weights(VisDecoder(case["block_type"], case["inplanes"], case["instrides"]))
    image = draw(decoder, golden_input(case["input_seed"], case["input_shape"]))
    published = torch.from_numpy(GOLDEN["vis_decoder/image_rec"])
    torch.testing.assert_close(image, published, rtol=0, atol=1e-5 * published.abs().max().item())


@pytest.mark.parametrize("block_type", ["basic", "bottle"])
@pytest.mark.parametrize("stride", [16, 32])
def test_the_image_has_stride_times_the_grid_s_size(block_type, stride):
    with torch.device("meta"):  # shapes only
        image = draw(VisDecoder(block_type, [24], [stride]), torch.empty(2, 24, 3, 4))
    assert image.shape == (2, 3, 3 * stride, 4 * stride)


def test_the_bottle_form_can_be_trained():
    decoder = VisDecoder("bottle", [8], [16])
    image = decoder({"feature_align": golden_input(1, [2, 8, 2, 2])})["image_rec"]
    image.square().mean().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("block_type", ["basic", "bottle"])
def test_a_stage_s_first_block_enlarges_the_map_before_its_second_convolution(block_type):
    with torch.device("meta"):
        decoder, sizes = VisDecoder(block_type, [24], [16]), []
        for convolution in (decoder.layer3[0].conv1, decoder.layer3[0].conv2):
            convolution.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
        draw(decoder, torch.empty(1, 24, 3, 4))
    assert sizes == [(3, 4), (6, 8)]


@pytest.mark.parametrize(
    ("block_type", "layers", "channels"), [("basic", 2, [512, 256, 128, 128]), ("bottle", 3, [2048, 1024, 512, 512])]
)
def test_stages_are_named_as_published(block_type, layers, channels):
    with torch.device("meta"):
        state = VisDecoder(block_type, [24], [16]).state_dict()
    convolutions = {key: tuple(value.shape) for key, value in state.items() if value.ndim == 4}
    expected = {"conv1.weight": (channels[3], channels[3], 7, 7), "conv2.weight": (3, channels[3], 1, 1)}
    assert {key: convolutions[key] for key in expected} == expected
    for stage, blocks, planes in zip(("layer4", "layer3", "layer2", "layer1"), (3, 6, 4, 3), channels, strict=True):
        blocks_found = {key.split(".")[1] for key in state if key.startswith(stage)}
        assert blocks_found == {str(index) for index in range(blocks)}
        assert convolutions[f"{stage}.{blocks - 1}.conv{layers}.weight"][0] == planes
    assert {key.rsplit(".", 1)[0] for key in state if key.startswith("layer4.0.shortcut")} == {
        "layer4.0.shortcut.0",
        "layer4.0.shortcut.2",
    }
    assert not any("shortcut" in key for key in state if key.startswith("layer1"))
    assert not any(key.endswith("bias") and "conv" in key for key in state)


def test_convolutions_start_normal_or_as_the_initializer_says():
    torch.manual_seed(0)
    assert VisDecoder("basic", [24], [16]).conv1.weight.std().item() == pytest.approx(0.01, rel=0.02)
    fan = 49 * 128
    xavier = VisDecoder("basic", [24], [16], initializer={"method": "xavier_uniform"}).conv1.weight
    assert xavier.abs().max().item() == pytest.approx((6 / (2 * fan)) ** 0.5, rel=0.01)


def test_channels_and_strides_may_be_bare_numbers():
    with torch.device("meta"):
        bare, listed = VisDecoder("basic", 24, 32).state_dict(), VisDecoder("basic", [24], [32]).state_dict()
    assert {key: value.shape for key, value in bare.items()} == {key: value.shape for key, value in listed.items()}


def test_an_unknown_block_type_is_told():
    with pytest.raises(UserError, match="block_type 'bottleneck' is unknown: choose one of basic, bottle"):
        VisDecoder("bottleneck", [24], [16])


def test_another_stride_is_told():
    with pytest.raises(UserError, match="stride 16 or 32, not 8"):
        VisDecoder("basic", [24], [8])
