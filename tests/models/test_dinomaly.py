"""Dinomaly gives the published implementation's outputs and trains as it did; its fast parts equal their plain definitions."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import Criterion, GroupCosineLoss
from models.reconstructions import Dinomaly
from models.reconstructions.dinomaly import elu_plus_1, linear_attention
from tests.helpers.golden_cases import DINOMALY, DINOMALY_CASES, DINOMALY_KEYS, golden_tokens, golden_weights
from utils.benchmark.plain_dinomaly import PlainDinomaly, plain_loss
from utils.errors import UserError
from utils.evaluation.maps import MapForm
from utils.evaluation.metrics import image_scores
from utils.optim import StableAdamW, WarmupCosineLR

SMALL = {"inplanes": [16] * 4, "instrides": [14] * 4, "feature_size": [3, 4], "nhead": 2, "num_decoder_layers": 4}
SMALL |= {"groups": [[0, 1, 2], [3]], "dropout": 0.2}


def build(case: dict[str, Any], dropout: float) -> Dinomaly:
    planes, strides, grid = [case["dim"]] * case["L"], [14] * case["L"], [case["side"]] * 2
    return golden_weights(Dinomaly(planes, strides, grid, case["heads"], case["depth"], case["groups"], dropout))


@cache
def golden_outputs(name: str) -> dict[str, Any]:
    case = DINOMALY_CASES[name]
    with torch.no_grad():
        return build(case, dropout=0.2).eval()(golden_tokens(case, case["seed"]))


def tokens_of(layers: dict[str, list[Tensor]]) -> list[Tensor]:
    pairs = zip(layers["prefix"], layers["features"], strict=True)
    return [torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1) for prefix, grid in pairs]


def layers_of(seed: int = 0, number: int = 4, prefix: int = 2) -> dict[str, list[Tensor]]:
    """What a backbone gives to SMALL."""
    random = torch.Generator().manual_seed(seed)
    features = [torch.randn(2, 16, 3, 4, generator=random) for _ in range(number)]
    return {"features": features, "prefix": [torch.randn(2, prefix, 16, generator=random) for _ in range(number)]}


# ---- the published implementation


@pytest.mark.parametrize("name", ["small", "noreg", "vits"])
def test_groups_and_map_equal_the_published_implementation(name: str) -> None:
    outputs = golden_outputs(name)
    for number in range(len(DINOMALY_CASES[name]["groups"])):
        for kind, key in (("en", "encoded"), ("de", "decoded")):
            expected = DINOMALY[f"{name}/{kind}{number}"]
            np.testing.assert_allclose(outputs[key][number][:, ::3], expected, rtol=0, atol=1e-5)
    assert len(outputs["encoded"]) == len(outputs["decoded"]) == len(DINOMALY_CASES[name]["groups"])
    np.testing.assert_allclose(outputs["pred"][:, :, ::3, ::3], DINOMALY[f"{name}/map"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "noreg", "vits"])
def test_the_smoothed_map_and_the_top_score_equal_the_published_implementation(name: str) -> None:
    maps = MapForm((64, 64), 4.0)(golden_outputs(name)["pred"])
    np.testing.assert_allclose(maps[:, :, ::2, ::2], DINOMALY[f"{name}/smooth64"], rtol=0, atol=1e-5)
    scores = image_scores(maps.squeeze(1).numpy(), "top", 0.01)
    np.testing.assert_allclose(scores, DINOMALY[f"{name}/top"].ravel(), rtol=0, atol=1e-5)


def test_six_training_steps_equal_the_published_implementation() -> None:
    case = DINOMALY_CASES["train"]
    model, criterion = build(case, dropout=0.0).train(), GroupCosineLoss(1.0, case["p_final"], case["factor"], case["p_ramp"])
    numbers = {key: case[key] for key in ("lr", "eps", "weight_decay", "amsgrad")}
    optimizer = StableAdamW(model.parameters(), **numbers)
    scheduler = WarmupCosineLR(optimizer, case["total"], case["warmup"], case["final"])
    losses, norms, rates = [], [], []
    for number, seed in enumerate(case["token_seeds"]):
        loss = criterion(model(golden_tokens(case, seed)) | {"step": number * case["iteration_step"]})
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip"]).item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, case["losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, case["grad_norms"], rtol=1e-5)
    np.testing.assert_allclose(rates, case["rates"], rtol=1e-12)
    after = model.decoder[7].mlp.fc2.weight.detach()[::4, ::8]
    np.testing.assert_allclose(after, DINOMALY["train/after"], rtol=0, atol=1e-5)


def test_weights_have_the_published_names_and_shapes() -> None:
    shapes = {name: list(tensor.shape) for name, tensor in build(DINOMALY_CASES["small"], 0.0).state_dict().items()}
    assert shapes == DINOMALY_KEYS


def test_linear_layers_start_truncated_normal_with_biases_0() -> None:
    torch.manual_seed(0)
    for name, tensor in Dinomaly([64] * 8, [14] * 8, [2, 2], nhead=4).state_dict().items():
        if name.endswith("bias"):
            assert not tensor.any()
        elif "norm" in name:
            assert (tensor == 1).all()
        else:
            assert tensor.std().item() == pytest.approx(0.01, rel=0.05)
            assert 0.025 < tensor.abs().max() <= 0.03


# ---- plain definitions


@pytest.mark.parametrize("easy_step", [0, 300, 5000])
def test_gradients_equal_those_of_plain_modules_with_hard_mining(easy_step: int) -> None:
    case = DINOMALY_CASES["train"]
    model = build(case, dropout=0.0).train()
    plain = PlainDinomaly(case["dim"], case["heads"], case["depth"], case["groups"], 0.0, case["side"], case["side"])
    plain.load_state_dict(model.state_dict())
    layers = golden_tokens(case, 7)
    expected = plain_loss(*plain(tokens_of(layers)), easy_share=min(0.9 * easy_step / 1000, 0.9), factor=0.1)
    loss = GroupCosineLoss()(model(layers) | {"step": easy_step})
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() < 1e-5 * other.grad.norm(), name


def test_linear_attention_equals_attention_with_every_weight_written_out() -> None:
    q, k, v = (torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    scores = (F.elu(q) + 1) @ (F.elu(k) + 1).mT  # B x heads x N x N
    torch.testing.assert_close(linear_attention(q, k, v), scores / scores.sum(dim=3, keepdim=True) @ v)


def test_elu_plus_1_and_its_gradient_are_those_of_torch_s_elu() -> None:
    x = torch.tensor([-1e4, -90.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e4], requires_grad=True)
    given, gradient = x.detach().clone(), torch.linspace(1, 2, len(x))
    result, expected = elu_plus_1(x), F.elu(x) + 1
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, gradient) for y in (result, expected)))
    assert torch.equal(elu_plus_1(x.detach()), result)
    assert torch.equal(x, given)


@pytest.mark.parametrize("step", [0, 1, 250, 999, 1000, 10**6])
def test_easy_positions_pass_on_a_tenth_of_the_gradient(step: int) -> None:
    """Position by position: those whose distance is below that of the k hardest."""
    encoded, plain, mined = (torch.randn(3, 8, 4, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 1))
    plain.requires_grad_()
    mined.requires_grad_()
    unmined = sum(1 - F.cosine_similarity(encoded[i].flatten(), plain[i].flatten(), dim=0) for i in range(3)) / 3
    unmined.backward()
    loss = GroupCosineLoss()({"encoded": [encoded], "decoded": [mined], "step": step})
    loss.backward()
    torch.testing.assert_close(loss, unmined)

    distances = {}
    for i, y, x in np.ndindex(3, 4, 5):
        distances[i, y, x] = 1 - F.cosine_similarity(encoded[i, :, y, x], plain[i, :, y, x], dim=0).item()
    hardest = sorted(distances.values(), reverse=True)[: int(60 * (1 - min(0.9 * step / 1000, 0.9)))]
    easy = 0
    for (i, y, x), distance in distances.items():
        factor = 0.1 if distance < hardest[-1] - 1e-6 else 1.0
        easy += factor < 1
        torch.testing.assert_close(mined.grad[i, :, y, x], plain.grad[i, :, y, x] * factor)
    assert easy == 60 - len(hardest)
    assert easy == {0: 0, 1: 1, 250: 14, 999: 54, 1000: 55, 10**6: 55}[step]  # 0.9 * 60 = 54, a count is rounded down


def test_the_threshold_is_each_group_s_own() -> None:
    def gradient(*other: Tensor) -> Tensor:
        encoded, decoded = (torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        decoded.requires_grad_()
        outputs = {"encoded": [encoded, *other], "decoded": [decoded, *(x + 1e-3 for x in other)], "step": 2000}
        GroupCosineLoss()(outputs).backward()
        return decoded.grad

    torch.testing.assert_close(gradient(torch.ones(2, 8, 5, 5)) * 2, gradient())


def test_a_batch_of_few_positions_keeps_its_hardest_one() -> None:
    decoded = torch.randn(1, 4, 1, 2, requires_grad=True)
    outputs = {"encoded": [torch.randn(1, 4, 1, 2)], "decoded": [decoded], "step": 1000}
    GroupCosineLoss()(outputs).backward()
    assert decoded.grad.isfinite().all()


def test_the_loss_has_weight_share_factor_and_warmup() -> None:
    encoded, decoded = (torch.randn(2, 8, 4, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    def loss_and_gradient(step: int | None, **kwargs: float) -> tuple[Tensor, Tensor]:
        leaf = decoded.clone().requires_grad_()
        outputs = {"encoded": [encoded], "decoded": [leaf]} | ({} if step is None else {"step": step})
        loss = Criterion([{"type": "GroupCosineLoss", "kwargs": kwargs}])(outputs)
        loss.backward()
        return loss.detach(), leaf.grad

    loss, gradient = loss_and_gradient(None)
    torch.testing.assert_close(loss_and_gradient(0), (loss, gradient))
    torch.testing.assert_close(loss_and_gradient(None, weight=3.0), (3 * loss, 3 * gradient))
    torch.testing.assert_close(loss_and_gradient(5, factor=1.0, warmup=10), (loss, gradient))
    ratio = loss_and_gradient(5, share=0.5, factor=0.0, warmup=10)[1] / gradient
    assert (ratio == 0).float().mean() == 0.25  # half of share, halfway to it


def test_an_evaluated_network_has_the_same_loss() -> None:
    model = Dinomaly(**SMALL | {"dropout": 0.0}).train()
    trained = GroupCosineLoss()(model(layers_of()) | {"step": 1000})
    with torch.no_grad():
        evaluated = GroupCosineLoss()(model.eval()(layers_of()) | {"step": 1000})
    assert trained.requires_grad
    torch.testing.assert_close(evaluated, trained.detach())


# ---- groups, prefix, modes


def test_groups_are_means_of_their_layers_with_the_prefix_first() -> None:
    layers = layers_of()
    model = Dinomaly(**SMALL)
    groups = model.group(**layers)
    tokens = tokens_of(layers)
    torch.testing.assert_close(groups[:, 0], (tokens[0] + tokens[1] + tokens[2]) / 3)
    torch.testing.assert_close(groups[:, 1], tokens[3])
    torch.testing.assert_close(model.group(layers["features"], None), groups[:, :, 2:])


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3]], [[0, 1, 2], [3]], [[3, 0], [2], [1]]])
@pytest.mark.parametrize("prefix", [0, 2])
def test_layers_and_cached_groups_give_what_plain_modules_give(groups: list[list[int]], prefix: int) -> None:
    layers = layers_of(prefix=prefix)
    given = layers if prefix else {"features": layers["features"]}
    model = golden_weights(Dinomaly(**SMALL | {"groups": groups})).eval()
    plain = PlainDinomaly(16, 2, 4, groups, 0.2, 3, 4).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        outputs, cached = model(given), model({"token_groups": model.group(**given)})
        encoded, decoded = plain(tokens_of(layers))
    torch.testing.assert_close(outputs["encoded"], encoded)
    torch.testing.assert_close(outputs["decoded"], decoded, rtol=1e-4, atol=1e-5)
    distances = [1 - F.cosine_similarity(a, b, dim=1) for a, b in zip(encoded, decoded, strict=True)]
    torch.testing.assert_close(outputs["distance"][:, 0], torch.stack(distances).mean(dim=0))
    assert outputs.keys() == cached.keys() == {"encoded", "decoded", "distance", "pred"}
    for key, value in outputs.items():
        torch.testing.assert_close(cached[key], value, rtol=0, atol=0)


def test_the_prefix_is_read_but_not_compared() -> None:
    layers = layers_of()
    changed = {**layers, "prefix": [tokens + 1 for tokens in layers["prefix"]]}
    model = golden_weights(Dinomaly(**SMALL)).eval()
    with torch.no_grad():
        before, after = model(layers), model(changed)
    for was, now in zip(before["encoded"], after["encoded"], strict=True):
        assert torch.equal(was, now)
    assert not torch.allclose(before["decoded"][0], after["decoded"][0])
    assert before["pred"].shape == (2, 1, 3 * 14, 4 * 14)


def test_training_is_noisy_in_the_bottleneck_only_and_makes_no_map() -> None:
    model = Dinomaly(**SMALL | {"dropout": 0.5}).train()
    torch.manual_seed(0)
    first, second = (model(layers_of()) for _ in range(2))
    torch.manual_seed(0)
    again = model(layers_of())
    assert first.keys() == {"encoded", "decoded"}
    assert not torch.equal(first["decoded"][0], second["decoded"][0])
    assert torch.equal(first["decoded"][0], again["decoded"][0])
    tokens = torch.randn(2, 5, 16)
    for block in model.decoder:
        assert torch.equal(block(tokens), block(tokens))


def test_the_encoder_s_side_is_constant() -> None:
    features = [layer.requires_grad_() for layer in layers_of()["features"]]
    outputs = Dinomaly(**SMALL).train()({"features": features})
    decoded = [grid.detach().requires_grad_() for grid in outputs["decoded"]]
    GroupCosineLoss()({"encoded": outputs["encoded"], "decoded": decoded}).backward()
    assert all(grid.grad.any() for grid in decoded)
    assert all(layer.grad is None for layer in features)


def test_distance_and_loss_are_float32_under_autocast() -> None:
    model = golden_weights(Dinomaly(**SMALL)).eval()
    with torch.no_grad():
        exact = model(layers_of())
        with torch.autocast("cpu", torch.bfloat16):
            halved = model(layers_of())
    for name in ("encoded", "decoded"):
        assert all(grid.dtype == torch.float32 for grid in halved[name])
    assert halved["pred"].dtype == torch.float32
    torch.testing.assert_close(halved["pred"], exact["pred"], rtol=0, atol=0.02)
    assert not torch.equal(halved["pred"], exact["pred"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inplanes": [16, 16, 16, 32]}, r"one width and stride, not of widths \[16, 16, 16, 32\]"),
        ({"instrides": [14, 14, 14, 7]}, r"one width and stride, not .* strides \[14, 14, 14, 7\]"),
        ({"nhead": 3}, "nhead 3 must divide the backbone's width 16"),
        ({"nhead": 0}, "nhead 0 must divide the backbone's width 16"),
        ({"num_decoder_layers": 3}, "num_decoder_layers 3 must be the number of the backbone's outlayers, 4"),
        ({"groups": [[0, 1], [2]]}, r"groups \[\[0, 1\], \[2\]\] must hold each of the backbone's layers 0 to 3 once"),
        ({"groups": [[0, 1, 2], [2, 3]]}, "must hold each of the backbone's layers 0 to 3 once"),
        ({"groups": [[1, 2], [3, 4]]}, "must hold each of the backbone's layers 0 to 3 once"),
        ({"groups": [[0, 1, 2, 3], []]}, "none be empty"),
        ({"dropout": 1.0}, "dropout 1.0 must be at least 0 and less than 1"),
    ],
)
def test_sizes_that_do_not_go_together_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Dinomaly(**SMALL | change)
    assert "\n" not in str(error.value)
