"""Backbones: the published features, the promised layers, no wasted block, and ImageNet weights from the right place."""

import hashlib
import json
import shutil
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import efficientnet_lite_pytorch
import pytest
import skimage.data
import torch
import torchvision

from models.backbones import BACKBONES, pretrained
from models.backbones.specs import SPECS
from tests.helpers.backbones import build, features_of, poisoned
from tests.helpers.golden_cases import CASES, GOLDEN, GOLDEN_DIR, golden_input, golden_weights
from utils.errors import UserError

NOBODY_LISTENS = "http://127.0.0.1:9"


# ---- features


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b4"])
def test_features_are_the_published_ones(name):
    case = CASES[name]
    backbone = golden_weights(build(name, *case["outlayers"]))
    features = features_of(backbone, golden_input(case["input_seed"], case["input_shape"]))
    for layer, feature in zip(case["outlayers"], features, strict=True):
        torch.testing.assert_close(feature, torch.from_numpy(GOLDEN[f"{name}/layer{layer}"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_every_layer_has_its_promised_channels_and_stride(name):
    layers = range(1, len(SPECS[name].strides) + 1)
    with torch.device("meta"):  # shapes only
        backbone = build(name, *layers)
        features = features_of(backbone, torch.empty(2, 3, 64, 128))
    assert len(features) == (5 if name.startswith("efficientnet") else 4)
    for feature, planes, stride in zip(features, backbone.outplanes, backbone.outstrides, strict=True):
        assert feature.shape == (2, planes, 64 // stride, 128 // stride)


@pytest.mark.parametrize("name", [name for name in SPECS if name.startswith("efficientnet")])
def test_an_efficientnet_layer_ends_where_the_next_block_halves_the_map(name):
    with torch.device("meta"):
        blocks = build(name, 1)._blocks
    halving = [index for index, block in enumerate(blocks) if list(block._depthwise_conv.stride) == [2, 2]]
    assert SPECS[name].blocks == (*(index - 1 for index in halving), len(blocks) - 1)


def test_lite_features_are_the_package_s():
    reference = golden_weights(efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite1")).eval()
    image = golden_input(1, [1, 3, 64, 64])
    outputs = []
    for block in reference._blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        reference(image)
    features = features_of(golden_weights(build("efficientnet_lite1", 1, 2, 3, 4, 5)), image)
    torch.testing.assert_close(features, [outputs[index] for index in (0, 3, 6, 14, 20)], rtol=0, atol=1e-5)


def test_resnet_features_are_torchvision_s():
    reference = golden_weights(torchvision.models.resnet18()).eval()
    image = golden_input(2, [1, 3, 64, 64])
    expected = []
    for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
        layer.register_forward_hook(lambda module, inputs, output: expected.append(output))
    with torch.no_grad():
        reference(image)
    torch.testing.assert_close(features_of(golden_weights(build("resnet18", 1, 2, 3, 4)), image), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_features_come_in_the_order_of_outlayers(name):
    image = golden_input(3, [1, 3, 64, 64])
    forward, backward = golden_weights(build(name, 1, 3)), golden_weights(build(name, 3, 1))
    assert backward.outplanes == forward.outplanes[::-1]
    assert backward.outstrides == forward.outstrides[::-1]
    torch.testing.assert_close(features_of(backward, image), features_of(forward, image)[::-1], rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_no_block_past_the_last_layer_and_no_head_is_run(frozen):
    image = golden_input(4, [1, 3, 64, 64])
    efficientnet = build("efficientnet_b0", 3, 1)
    last = SPECS["efficientnet_b0"].blocks[2]
    poisoned(efficientnet, *efficientnet._blocks[last + 1 :], efficientnet._conv_head, efficientnet._bn1, efficientnet._fc)
    resnet = build("resnet18", 2)
    poisoned(resnet, resnet.layer3, resnet.layer4, resnet.fc)
    for backbone in (efficientnet, resnet):
        features = backbone.requires_grad_(not frozen)({"image": image})["features"]
        assert all(feature.isfinite().all() for feature in features)
    poisoned(efficientnet, efficientnet._blocks[last])
    assert efficientnet({"image": image})["features"][0].isnan().any()


# ---- names of parameters


def test_b4_has_the_published_checkpoint_s_parameters():
    prefix = "module.backbone."
    keys = json.loads((GOLDEN_DIR / "mvtec_checkpoint_keys.json").read_text())
    published = {key.removeprefix(prefix): shape for key, (shape, _) in keys.items() if key.startswith(prefix)}
    ours = {key: list(tensor.shape) for key, tensor in build("efficientnet_b4", 1, 2, 3, 4).state_dict().items()}
    assert len(ours) == 706
    assert ours == published


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"])
def test_resnets_have_torchvision_s_parameters(name):
    with torch.device("meta"):
        ours, reference = build(name, 1).state_dict(), torchvision.models.get_model(name).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in reference.items()}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_lites_have_the_parameters_of_their_package(name):
    with torch.device("meta"):
        ours = build(name, 1).state_dict()
        reference = efficientnet_lite_pytorch.EfficientNet.from_name(name.replace("_", "-")).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in reference.items()}


# ---- layers that do not exist


@pytest.mark.parametrize(("name", "layer"), [("efficientnet_b4", 6), ("efficientnet_lite0", 0), ("resnet18", 5)])
def test_a_layer_it_lacks_is_told_with_those_it_has(name, layer):
    with pytest.raises(UserError, match=rf"{name} has no layer {layer} .*its layers are \[1, 2, 3, 4") as error:
        build(name, 1, layer)
    assert "\n" not in str(error.value)


def test_outlayers_may_not_be_empty():
    with pytest.raises(UserError, match="outlayers of resnet18 is empty"):
        build("resnet18")


# ---- ImageNet weights

NAME = "efficientnet_b0"


@pytest.fixture
def weights():
    """A state_dict of NAME by any number: every parameter holds that number."""
    shapes = build(NAME, 1).state_dict()
    return lambda number: {key: torch.full_like(tensor, number) for key, tensor in shapes.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch hub, and no server behind the addresses of weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(pretrained.URLS, NAME, f"{NOBODY_LISTENS}/efficientnet-b0-355c32eb.pth")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def load(pretrained_model="", name=NAME):
    return BACKBONES[name](pretrained=True, outlayers=[1], pretrained_model=str(pretrained_model))


def number_in(backbone):
    (number,) = {tensor.unique().item() for tensor in backbone.state_dict().values()}
    return number


def test_weights_come_from_the_cache(cache, weights):
    torch.save(weights(2), cache / "efficientnet-b0-355c32eb.pth")
    assert number_in(load()) == 2


def test_a_named_file_wins_over_the_cache(cache, weights, tmp_path):
    torch.save(weights(2), cache / "efficientnet-b0-355c32eb.pth")
    torch.save(weights(3), tmp_path / "mine.pth")
    assert number_in(load(tmp_path / "mine.pth")) == 3


def test_a_named_file_wins_over_bundled_weights(tmp_path):
    zeros = {key: torch.zeros_like(tensor) for key, tensor in build("efficientnet_lite0", 1).state_dict().items()}
    torch.save(zeros, tmp_path / "zeros.pth")
    assert number_in(load(tmp_path / "zeros.pth", "efficientnet_lite0")) == 0


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_bundled_weights_recognise_a_cat(cache, name):
    cat = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None].float()
    cat = torch.nn.functional.interpolate(cat[..., 75:375], (224, 224), mode="bilinear", antialias=True)
    network = efficientnet_lite_pytorch.EfficientNet.from_name(name.replace("_", "-")).eval()
    network.load_state_dict(load(name=name).state_dict())
    with torch.no_grad():
        scores = network((cat - 127) / 128)
    assert scores.argmax().item() in range(281, 286)  # ImageNet's five domestic cats
    assert not any(cache.iterdir())  # nothing was downloaded


def test_the_weights_of_a_parallel_model_s_checkpoint_load_too(weights, tmp_path):
    state_dict = {f"module.{name}": tensor for name, tensor in weights(4).items()}
    torch.save({"epoch": 90, "state_dict": state_dict}, tmp_path / "weights.pth")
    assert number_in(load(tmp_path / "weights.pth")) == 4


def test_without_pretrained_nothing_is_read(cache):
    backbone = build(NAME, 1, pretrained_model="nowhere.pth")
    assert {tensor.isfinite().all().item() for tensor in backbone.state_dict().values()} == {True}
    assert not list(cache.iterdir())


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(cache, tmp_path, monkeypatch):
    """Serves tmp_path/served; gives that folder, and a function that makes the address of NAME's weights a file of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, lambda file: monkeypatch.setitem(pretrained.URLS, NAME, f"http://127.0.0.1:{http.server_port}/{file}")
        http.shutdown()


def test_weights_in_no_cache_are_downloaded_into_it(cache, weights, server):
    folder, offer = server
    torch.save(weights(5), folder / "weights.pth")
    digits = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    shutil.move(folder / "weights.pth", folder / f"b0-{digits}.pth")
    offer(f"b0-{digits}.pth")
    assert number_in(load()) == 5
    assert [path.name for path in cache.iterdir()] == [f"b0-{digits}.pth"]


def test_a_download_whose_hash_is_wrong_is_refused(cache, weights, server):
    folder, offer = server
    torch.save(weights(6), folder / "b0-00000000.pth")
    offer("b0-00000000.pth")
    with pytest.raises(UserError, match="invalid hash"):
        load()
    assert not any(cache.iterdir())


def test_a_download_that_fails_says_where_to_put_the_file(cache):
    with pytest.raises(UserError) as error:
        load()
    message = str(error.value)
    assert message.startswith(f"{NAME}: ")
    assert f"{NOBODY_LISTENS}/efficientnet-b0-355c32eb.pth" in message
    assert f"put that file at {cache / 'efficientnet-b0-355c32eb.pth'}, or anywhere and name it in pretrained_model" in message
    assert "\n" not in message


def test_a_server_that_stays_silent_is_a_failure_too(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setitem(pretrained.URLS, NAME, f"http://127.0.0.1:{silent.getsockname()[1]}/b0-355c32eb.pth")
        monkeypatch.setattr(pretrained, "STALL_SECONDS", 0.1)
        with pytest.raises(UserError, match="timed out"):
            load()
    assert socket.getdefaulttimeout() is None
    assert not any(cache.iterdir())


def test_every_backbone_has_a_source_of_weights():
    assert pretrained.URLS.keys() | pretrained.BUNDLED_FILES.keys() == SPECS.keys()


# ---- files that do not fit


def refusal(path, name=NAME):
    with pytest.raises(UserError) as error:
        load(path, name)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_missing_file_is_told(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pth")


def test_a_truncated_file_is_told(tmp_path, weights):
    path = tmp_path / "weights.pth"
    torch.save(weights(1), path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated or no file of weights" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", bytes(range(256)) * 9])
def test_a_foreign_file_is_told(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert "truncated or no file of weights" in refusal(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": None}, {1: torch.zeros(1)}])
def test_a_file_without_weights_is_told(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    assert "holds no weights" in refusal(tmp_path / "weights.pth")


class Payload:
    def __reduce__(self):
        return print, ("code in a file of weights was run",)


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    torch.save({"weight": Payload()}, tmp_path / "weights.pth")
    refusal(tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


def test_the_weights_of_another_model_are_told_by_their_keys(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    message = refusal(tmp_path / "resnet.pth")
    assert f"does not hold the weights of {NAME}" in message
    assert "missing: _conv_stem.weight, " in message
    assert "unexpected: conv1.weight, " in message
    assert "more" in message


def test_a_parameter_of_another_shape_is_told(tmp_path, weights):
    state = weights(1) | {"_fc.weight": torch.zeros(10, 1280)}
    torch.save(state, tmp_path / "ten_classes.pth")
    assert "of another shape: _fc.weight [10, 1280] for [1000, 1280]" in refusal(tmp_path / "ten_classes.pth")
