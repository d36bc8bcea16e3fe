"""What is done for speed changes no result: dropout stays dropout, bfloat16 stays near float32."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from models.dropout import Dropout, attention
from models.reconstructions import UniAD
from models.reconstructions.transformer import EncoderLayer
from models.reconstructions.uniad import build_neighbor_mask
from tests.helpers.bfloat16_units import Bfloat16Units
from utils.process.memory import keep_freed_memory
from utils.process.precision import choose_precision

P = 0.1
MVTEC = {"inplanes": [272], "instrides": [16], "feature_size": [14, 14]}
NEIGHBORS = {"neighbor_size": [7, 7], "mask": [True, True, True]}


def within(rate: float, expected: float, draws: int) -> bool:
    """Whether a share of `draws` draws lies within five standard deviations of what is expected."""
    return abs(rate - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)


def weights_after_dropout(p: float, seed: int, tokens: int = 30) -> torch.Tensor:
    """4 x 3 x tokens x tokens: attention weights with dropout, all equal before it; values that are the identity show them."""
    torch.manual_seed(seed)
    q = torch.zeros(4, 3, tokens, 8)
    return attention(q, q, torch.eye(tokens).expand(4, 3, -1, -1), None, p)


# ---- dropout


@pytest.mark.parametrize("p", [P, 0.5, 0.003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_rate_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(700, 999, dtype=dtype)
    dropped = Dropout(p).train()(ones)
    assert within((dropped == 0).double().mean().item(), p, ones.numel())
    kept = dropped[dropped != 0]
    assert kept.double().mean().item() == pytest.approx(1 / (1 - p), rel=1e-4 if dtype == torch.float32 else 4e-3)
    assert kept.unique().numel() == 1


def test_attention_weights_are_dropped_at_their_rate_and_the_rest_is_scaled() -> None:
    weights = weights_after_dropout(P, seed=0)
    assert within((weights == 0).double().mean().item(), P, weights.numel())
    torch.testing.assert_close(weights[weights != 0], torch.tensor(1 / 30 / (1 - P)).expand_as(weights[weights != 0]))


def test_draws_are_independent_between_rows_columns_heads_images_and_calls() -> None:
    first, second = ((weights_after_dropout(0.5, seed) > 0).double() - 0.5 for seed in (0, 1))
    for shifted in (second, *(first.roll(1, dim) for dim in range(4))):
        assert abs((first * shifted).mean().item()) < 5 * 0.25 / math.sqrt(first.numel())


def test_gradients_pass_where_elements_were_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 50, 64, requires_grad=True)
    dropped = Dropout(P).train()(x * 1)
    gradient = torch.randn_like(dropped)
    dropped.backward(gradient)
    torch.testing.assert_close(x.grad, gradient * (dropped != 0) / (1 - P), rtol=1e-4, atol=0)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_with_dropout_has_the_gradients_of_its_formula(masked: bool) -> None:
    torch.manual_seed(0)
    tokens = 36
    q, k, v = (torch.randn(2, 4, tokens, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = build_neighbor_mask((6, 6), (3, 3)) if masked else None
    torch.manual_seed(3)
    kept = attention(torch.zeros_like(q), torch.zeros_like(k), torch.eye(tokens).double().expand(2, 4, -1, -1), None, P) != 0
    scores = q @ k.mT / math.sqrt(8) + (0 if mask is None else mask)
    expected = (scores.softmax(-1) * kept / (1 - P)) @ v

    torch.manual_seed(3)
    attended = attention(q, k, v, mask, P)
    torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-6)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), gradient)
    for given, want in zip(torch.autograd.grad(attended, (q, k, v), gradient), wanted, strict=True):
        torch.testing.assert_close(given, want, rtol=1e-3, atol=1e-5)


def test_the_average_over_dropouts_is_the_attention_without() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 20, 8)
    average = torch.stack([attention(q, k, v, None, P) for _ in range(3000)]).mean(dim=0)
    torch.testing.assert_close(average, attention(q, k, v, None, 0.0), rtol=0, atol=0.02)


def test_dropout_follows_torch_s_seed_and_a_restored_state() -> None:
    torch.manual_seed(0)
    model = UniAD([8], [16], [6, 6], None, None, 16, nhead=2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=16)
    model.train()
    features = torch.randn(2, 8, 6, 6)
    torch.manual_seed(7)
    first = model({"feature_align": features})["feature_rec"]
    state = torch.get_rng_state()
    second = model({"feature_align": features})["feature_rec"]
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(model({"feature_align": features})["feature_rec"], second)
    torch.manual_seed(7)
    assert torch.equal(model({"feature_align": features})["feature_rec"], first)


def test_evaluation_and_rate_0_drop_nothing() -> None:
    x = torch.randn(5, 6)
    assert torch.equal(Dropout(P).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


# ---- bfloat16


@pytest.fixture(scope="module")
def model() -> UniAD:
    torch.manual_seed(0)
    jitter = {"scale": 20.0, "prob": 1.0}
    return UniAD(**MVTEC, feature_jitter=jitter, neighbor_mask=NEIGHBORS, num_encoder_layers=2, num_decoder_layers=2)


def test_under_autocast_the_map_is_in_float32_and_near(model: UniAD) -> None:
    features = torch.randn(1, 272, 14, 14)
    with torch.no_grad():
        exact = model.eval()({"feature_align": features})
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model({"feature_align": features})
            from_rounded_features = model({"feature_align": features.bfloat16()})
    for outputs in (rounded, from_rounded_features):
        assert {tensor.dtype for tensor in outputs.values()} == {torch.float32}
        distance = (outputs["feature_rec"] - outputs["feature_align"]).norm(dim=1)
        torch.testing.assert_close(outputs["pred"][:, 0, ::15, ::15][:, :1, :1], distance[:, :1, :1], rtol=1e-5, atol=0)
        assert (outputs["pred"] - exact["pred"]).abs().max() < 0.02 * exact["pred"].max()


def test_a_training_step_under_autocast_is_near_one_in_float32(model: UniAD) -> None:
    features = torch.randn(2, 272, 14, 14)
    losses, gradients = [], []
    for enabled in (False, True):
        trained = copy.deepcopy(model).train()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = trained({"feature_align": features})
        loss = F.mse_loss(outputs["feature_rec"], outputs["feature_align"])
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert gradients[1].dtype == torch.float32
    assert F.cosine_similarity(*gradients, dim=0) > 0.98


def test_products_as_bfloat16_units_make_them_are_those_of_the_emulation() -> None:
    """What tests/helpers/bfloat16_units.py trains with; the products of a layer with dropout, forward and backward."""
    torch.manual_seed(0)
    layer = EncoderLayer(64, 4, 128, 0.1, "relu", False).train()
    features, pos, mask, weights = torch.randn(2, 49, 64), torch.randn(49, 64), torch.zeros(49, 49), torch.randn(2, 49, 64)
    results = {}
    for name, units in (("emulated", nullcontext()), ("units", Bfloat16Units()), ("float32", nullcontext())):
        layer.zero_grad()
        torch.manual_seed(1)
        with units, torch.autocast("cpu", torch.bfloat16, enabled=name != "float32"):
            out = layer(features, pos, mask)
            (out.float() * weights).sum().backward()
        results[name] = torch.cat([out.flatten().float(), *(parameter.grad.flatten() for parameter in layer.parameters())])
    distance = (results["units"] - results["emulated"]).norm()
    assert distance < 1e-4 * results["emulated"].norm()
    assert distance < 0.05 * (results["float32"] - results["emulated"]).norm()


# ---- memory


def test_keeping_freed_memory_changes_no_result() -> None:
    x = torch.randn(2000, 2000)
    before = x.exp().sum()
    keep_freed_memory()
    assert torch.equal(x.exp().sum(), before)


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_bfloat16_is_taken_where_it_is_asked_for_and_only_there(name: str, dtype: torch.dtype) -> None:
    assert choose_precision(name) == dtype
