"""initialize: how weights start."""

import math

import pytest
import torch
from torch import nn

from models.initializer import initialize
from utils.errors import UserError

LAYERS = {
    "convolution": lambda: nn.Conv2d(30, 40, 5),
    "transposed convolution": lambda: nn.ConvTranspose2d(40, 30, 5),
    "linear": lambda: nn.Linear(300, 400),
}


def started(layer, method=None, **kwargs):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(layer))
    initialize(module, **({"method": method} if method else {}), **kwargs)
    return layer.weight.detach()


def fans(weight):
    """Inputs and outputs of one unit, as torch counts them: dimension 1 and dimension 0."""
    area = weight[0, 0].numel()
    return weight.shape[1] * area, weight.shape[0] * area


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("method", "expected_std"),
    [
        (None, lambda fan_in, fan_out: 0.01),
        ("normal", lambda fan_in, fan_out: 0.01),
        ("xavier_uniform", lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
        ("xavier_normal", lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
        ("msra_uniform", lambda fan_in, fan_out: math.sqrt(1 / fan_in)),
        ("msra_normal", lambda fan_in, fan_out: math.sqrt(1 / fan_in)),
    ],
)
def test_each_method_has_its_spread(layer, method, expected_std):
    weight = started(LAYERS[layer](), method)
    expected = expected_std(*fans(weight))
    assert weight.std().item() == pytest.approx(expected, rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=0.03 * expected)
    uniform = str(method).endswith("uniform")
    assert (weight.abs().max().item() <= expected * math.sqrt(3) * 1.0001) == uniform


def test_options_of_a_method_are_used():
    assert started(nn.Linear(300, 400), "normal", std=0.5).std().item() == pytest.approx(0.5, rel=0.03)
    plain, doubled = (started(nn.Linear(300, 400), "xavier_uniform", gain=gain) for gain in (1, 2))
    torch.testing.assert_close(doubled, 2 * plain)


@pytest.mark.parametrize("layer", LAYERS)
def test_biases_start_at_zero(layer):
    module = LAYERS[layer]()
    initialize(module, "xavier_uniform")
    assert not module.bias.any()


def test_batch_normalisation_starts_as_identity():
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    initialize(norm)
    assert norm.weight.eq(1).all()
    assert not norm.bias.any()


def test_queries_embeddings_and_attention_s_in_projection_are_left_alone():
    attention, embedding, norm = nn.MultiheadAttention(8, 2), nn.Embedding(3, 8), nn.LayerNorm(8)
    parameters = {"in": attention.in_proj_weight, "embedding": embedding.weight, "norm": norm.weight}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    out_projection = attention.out_proj.weight.detach().clone()
    initialize(nn.ModuleList([attention, embedding, norm]), "xavier_uniform")
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name])
    assert not torch.equal(attention.out_proj.weight, out_projection)


def test_an_unknown_method_is_told_with_the_nearest():
    with pytest.raises(UserError, match="'xavier_unifrom', did you mean 'xavier_uniform'"):
        initialize(nn.Linear(1, 1), "xavier_unifrom")


def test_an_option_the_method_does_not_take_is_told():
    with pytest.raises(UserError, match="msra_normal takes no 'std', only a"):
        initialize(nn.Linear(1, 1), "msra_normal", std=0.1)
