"""UniAD gives the published implementation's outputs, masks what it should and trains as it did."""

import numpy as np
import pytest
import torch

from models.dropout import Dropout
from models.losses import FeatureMSELoss
from models.reconstructions.transformer import Attention, DecoderLayer, EncoderLayer
from models.reconstructions.uniad import UniAD, build_neighbor_mask, jitter
from tests.helpers.golden_cases import CASES, GOLDEN, golden_input, golden_weights
from utils.errors import UserError

FORWARD_CASES = [name for name in CASES if name == "mvtec" or name.startswith("small")]


def build(config: dict) -> UniAD:
    config = dict(config)
    window, mask = config.pop("neighbor_size"), config.pop("mask")
    config["neighbor_mask"] = {"neighbor_size": window, "mask": mask} if window else False
    return UniAD(**{"feature_jitter": False, "save_recon": False, "initializer": {"method": "xavier_uniform"}, **config})


@pytest.mark.parametrize("name", FORWARD_CASES)
def test_outputs_equal_the_published_implementation(name: str) -> None:
    case = CASES[name]
    model = golden_weights(build(case["config"])).eval()
    features = golden_input(case["input_seed"], case["input_shape"])
    with torch.no_grad():
        outputs = model({"feature_align": features})
    np.testing.assert_allclose(outputs["feature_rec"], GOLDEN[f"{name}/feature_rec"], rtol=0, atol=1e-5)
    expected = GOLDEN[f"{name}/pred"]
    np.testing.assert_allclose(outputs["pred"].numpy()[:, 0, ::4, ::4], expected[:, 0], rtol=0, atol=1e-5 * expected.max())
    assert outputs["feature_align"] is features


def test_six_training_steps_equal_the_published_implementation() -> None:
    case = CASES["train"]
    model = golden_weights(build(case["config"])).train()
    optimizer = torch.optim.AdamW(model.parameters(), **{k: v for k, v in case["optimizer"].items() if k != "type"})
    losses, norms = [], []
    for seed in case["input_seeds"]:
        loss = FeatureMSELoss()(model({"feature_align": golden_input(seed, case["input_shape"])}))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip_max_norm"]).item())
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, case["losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, case["grad_norms"], rtol=1e-5)


@pytest.mark.parametrize("window", [(7, 7), (6, 7), (3, 5), (1, 1)])
def test_neighbor_mask_blocks_exactly_the_window(window: tuple[int, int]) -> None:
    h, w = 9, 10
    mask = build_neighbor_mask((h, w), window)
    for query in range(h * w):
        for key in range(h * w):
            near = abs(query // w - key // w) <= window[0] // 2 and abs(query % w - key % w) <= window[1] // 2
            assert mask[query, key] == (float("-inf") if near else 0)


def test_a_window_that_covers_the_grid_is_an_error_naming_both() -> None:
    with pytest.raises(UserError, match=r"neighbor_size 7x7 .* 7x7 feature grid"):
        build_neighbor_mask((7, 7), (7, 7))
    build_neighbor_mask((8, 8), (7, 7))


def test_masked_attention_cannot_see_its_own_neighbourhood() -> None:
    """With one masked decoder layer, a changed token changes every reconstruction but those of its neighbours."""
    torch.manual_seed(0)
    layers = {"num_encoder_layers": 0, "num_decoder_layers": 1, "hidden_dim": 16, "nhead": 2, "dim_feedforward": 16}
    masked = {"neighbor_size": [3, 3], "mask": [True, True, True]}
    model = UniAD([4], [16], [6, 6], False, masked, **layers).eval()
    features = torch.randn(1, 4, 6, 6)
    changed = features.clone()
    changed[0, :, 2, 3] += 5
    with torch.no_grad():
        before, after = (model({"feature_align": x})["feature_rec"] for x in (features, changed))
    moved = (before - after).abs().amax(dim=1)[0] > 1e-9
    assert not moved[1:4, 2:5].any()
    assert moved[:, 0].all()
    assert moved[5].all()


def test_layers_start_as_clones_with_linear_modules_drawn_one_by_one() -> None:
    torch.manual_seed(0)
    model = build({**CASES["small"]["config"], "normalize_before": False})
    first, second = model.transformer.decoder.layers[:2]
    assert torch.equal(first.learned_embed.weight, second.learned_embed.weight)
    assert torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert not torch.equal(first.self_attn.out_proj.weight, second.self_attn.out_proj.weight)
    assert first.linear1.bias.abs().max() == 0
    assert 0.9 < first.learned_embed.weight.std() < 1.1


def test_jitter_is_noise_in_proportion_to_the_token_norm() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4, 50, 64) * torch.tensor([1.0, 3.0]).repeat_interleave(25)[None, :, None]
    noise = jitter(tokens, scale=20.0, prob=1.0) - tokens
    expected = tokens.norm(dim=2) * 20 / 64
    assert (noise.std(dim=2) / expected).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(jitter(tokens, scale=20.0, prob=0.0), tokens)
    drawn = [not torch.equal(jitter(tokens, scale=20.0, prob=0.3), tokens) for _ in range(300)]
    assert 60 <= sum(drawn) <= 120


def test_the_map_is_made_in_evaluation_only_and_the_target_stays_clean() -> None:
    torch.manual_seed(0)
    model = build({**CASES["small"]["config"]})
    model.feature_jitter = {"scale": 20.0, "prob": 1.0}
    features = golden_input(1, CASES["small"]["input_shape"])
    outputs = model.train()({"feature_align": features})
    assert "pred" not in outputs
    assert torch.equal(outputs["feature_align"], golden_input(1, CASES["small"]["input_shape"]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_dim": 30}, "hidden_dim 30"),
        ({"dropout": 1}, "dropout 1"),
        ({"activation": "swish"}, "swish"),
        ({"pos_embed_type": "rotary"}, "rotary"),
    ],
)
def test_impossible_sizes_and_names_are_one_line(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        build({**CASES["small"]["config"], **change})


# --- dropout: the published weights above were compared at rate 0 ---

RATE = 0.3


@pytest.fixture
def with_dropout() -> UniAD:
    small = next(name for name in FORWARD_CASES if name.startswith("small"))
    return build({**CASES[small]["config"], "dropout": RATE}).train()


def test_each_dropout_has_the_configured_rate(with_dropout: UniAD) -> None:
    modules = [module for module in with_dropout.modules() if isinstance(module, Dropout)]
    assert modules
    ones = torch.ones(200, 1000)
    for module in modules:
        first, second = module(ones), module(ones)
        assert not torch.equal(first, second)
        assert (first == 0).float().mean().item() == pytest.approx(RATE, abs=0.01)
        assert first.mean().item() == pytest.approx(1, abs=0.02)
        assert torch.equal(module.eval()(ones), ones)


def test_each_attention_drops_weights_at_the_configured_rate(with_dropout: UniAD) -> None:
    modules = [module for module in with_dropout.modules() if isinstance(module, Attention)]
    assert modules
    for module in modules:
        size = module.out_proj.weight.shape[0]
        with torch.no_grad():  # every key has the same weight, and an output is the weight of one key
            module.in_proj_weight.zero_()
            module.in_proj_bias.zero_()
            module.in_proj_weight[2 * size :] = torch.eye(size)
            module.out_proj.weight.copy_(torch.eye(size))
            module.out_proj.bias.zero_()
        tokens = torch.eye(size).expand(max(1, 200_000 // size**2), size, size)
        first, second = module(tokens, tokens, tokens, None), module(tokens, tokens, tokens, None)
        assert not torch.equal(first, second)
        assert (first == 0).float().mean().item() == pytest.approx(RATE, abs=0.01)
        assert torch.allclose(module.eval()(tokens, tokens, tokens, None), torch.tensor(1 / size))


@pytest.mark.parametrize("part", ["attention", "feed-forward"])
def test_each_layer_has_dropout_on_its_residuals(with_dropout: UniAD, part: str) -> None:
    layers = [module for module in with_dropout.modules() if isinstance(module, EncoderLayer | DecoderLayer)]
    assert {type(layer) for layer in layers} == {EncoderLayer, DecoderLayer}
    for layer in layers:
        attentions = [module for module in layer.children() if isinstance(module, Attention)]
        for chosen in range(len(attentions) if part == "attention" else 1):
            keep_one_branch(layer, attentions, attentions[chosen] if part == "attention" else None)
            size = layer.norm1.weight.shape[0]
            tokens, pos = torch.randn(2, 7, size), torch.zeros(7, size)
            if isinstance(layer, DecoderLayer):
                layer.learned_embed = torch.nn.Embedding(7, size)
            args = (tokens, pos, None) if isinstance(layer, EncoderLayer) else (tokens, tokens, pos, None, None)
            assert not torch.equal(layer(*args), layer(*args))
            layer.dropout.eval()
            assert torch.equal(layer(*args), layer(*args))
            layer.dropout.train()


def keep_one_branch(layer: torch.nn.Module, attentions: list[Attention], kept: Attention | None) -> None:
    """Let all branches but one give 0, and that one a constant: what is random then is the dropout of its residual."""
    with torch.no_grad():
        for attention in attentions:
            attention.dropout = 0.0
            attention.out_proj.weight.zero_()
            attention.out_proj.bias.copy_(torch.arange(attention.out_proj.bias.numel()) * float(attention is kept))
        layer.linear2.weight.zero_()
        layer.linear2.bias.copy_(torch.arange(layer.linear2.bias.numel()) * float(kept is None))
