"""timm models as backbones: the promised layers of timm's own forward, weights from the right place, and a training run."""

import logging
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from models import build_network
from models.backbones import BACKBONES
from tests.helpers import tiny
from utils.config import load_config
from utils.errors import UserError

DINOV2 = "vit_small_patch14_reg4_dinov2"  # the smallest with registers
NOBODY_LISTENS = "http://127.0.0.1:9"


def build(name, *layers, size=(64, 64), pretrained=False, **kwargs):
    torch.manual_seed(0)
    return BACKBONES["timm"](name=name, pretrained=pretrained, outlayers=list(layers), input_size=size, **kwargs).eval()


def features_of(backbone, height=64, width=64):
    with torch.no_grad():
        return backbone({"image": image_of(height, width)})["features"]


def image_of(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def outputs_of(model, image, *modules):
    """What the modules give in timm's own forward pass of `model`."""
    outputs = []
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        model.forward_features(image)
    return outputs


# ---- features


def test_the_layers_of_a_multi_scale_model_are_its_levels():
    backbone = build("test_resnet", 1, 2, 3, 5)
    features = features_of(backbone, 64, 96)
    model = backbone.model
    expected = outputs_of(model, image_of(64, 96), model.act1, model.layer1, model.layer2, model.layer4)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert backbone.outstrides == [2, 4, 8, 32]
    assert [feature.shape[1] for feature in features] == backbone.outplanes


@pytest.mark.parametrize(("name", "patch", "planes", "prefix"), [("test_vit", 16, 64, 1), (DINOV2, 14, 384, 5)])
def test_the_layers_of_a_vit_are_its_blocks_as_one_grid_without_class_and_register_tokens(name, patch, planes, prefix):
    size = (3 * patch, 4 * patch)
    backbone = build(name, 2, 5, size=size)
    blocks = backbone.model.blocks
    tokens = outputs_of(backbone.model, image_of(*size), blocks[1], blocks[4])
    expected = [x[:, prefix:].transpose(1, 2).reshape(2, planes, 3, 4) for x in tokens]
    torch.testing.assert_close(features_of(backbone, *size), expected, rtol=0, atol=1e-5)
    assert (backbone.outplanes, backbone.outstrides) == ([planes, planes], [patch, patch])


@pytest.mark.parametrize(("name", "patch", "prefix"), [("test_vit", 16, 1), (DINOV2, 14, 5)])
def test_a_vit_gives_its_class_and_register_tokens_apart(name, patch, prefix):
    size = (3 * patch, 4 * patch)
    backbone = build(name, 5, 2, size=size)
    with torch.no_grad():
        outputs = backbone({"image": image_of(*size)})
    blocks = backbone.model.blocks
    earlier, later = outputs_of(backbone.model, image_of(*size), blocks[1], blocks[4])
    torch.testing.assert_close(outputs["prefix"], [later[:, :prefix], earlier[:, :prefix]], rtol=0, atol=1e-5)
    for tokens in outputs["prefix"]:  # not a view of all tokens, which it would keep in memory
        assert tokens.untyped_storage().nbytes() == tokens.numel() * tokens.element_size()


@pytest.mark.parametrize("name", ["test_vit", DINOV2])
def test_features_are_to_the_bit_those_without_a_prefix(name):
    backbone = build(name, 2, 5, size=(112, 112))
    with torch.no_grad():
        expected = backbone.model.forward_intermediates(image_of(112, 112), indices=[1, 4], intermediates_only=True)
        features = backbone({"image": image_of(112, 112)})["features"]
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    assert all(feature.is_contiguous() for feature in features)


# no such tokens; a ViT without any; a ViT whose class token timm does not give
@pytest.mark.parametrize("name", ["test_resnet", "vit_relpos_small_patch16_224", "xcit_nano_12_p16_224"])
def test_a_model_without_tokens_to_give_apart_gives_features_only(name):
    with torch.no_grad():
        assert build(name, 1, size=(224, 224))({"image": image_of(224, 224)}).keys() == {"features"}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout"])
def test_every_layer_has_its_promised_channels_and_stride(name):
    backbone = build(name, 1, 2, 3)
    for feature, planes, stride in zip(features_of(backbone), backbone.outplanes, backbone.outstrides, strict=True):
        assert feature.shape == (2, planes, 64 // stride, 64 // stride)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_features_come_in_the_order_of_outlayers(name):
    forward, backward = build(name, 1, 3), build(name, 3, 1)
    assert backward.outplanes == forward.outplanes[::-1]
    assert backward.outstrides == forward.outstrides[::-1]
    torch.testing.assert_close(features_of(backward), features_of(forward)[::-1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "rest"), [("test_resnet", ["layer3", "layer4"]), ("test_vit", ["blocks.3", "blocks.4", "norm"])]
)
def test_no_layer_past_the_last_one_is_run(name, rest):
    backbone = build(name, 3)
    with torch.no_grad():
        for parameter in (p for part in rest for p in backbone.model.get_submodule(part).parameters()):
            parameter.fill_(float("nan"))
    assert features_of(backbone)[0].isfinite().all()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_parameters_are_timm_s_without_a_classifier(name):
    keys = {key.removeprefix("model.") for key in build(name, 1).state_dict()}
    assert keys == set(timm.create_model(name, num_classes=0).state_dict())


# ---- names, layers and sizes that timm lacks


@pytest.mark.parametrize(
    ("name", "layers", "size", "message"),
    [
        ("wide_resnet50", [1], (64, 64), r"timm has no model 'wide_resnet50': did you mean wide_resnet50_2"),
        ("vit_base_patch14_reg4_dinov2.lvd", [1], (56, 56), r"did you mean .*vit_base_patch14_reg4_dinov2\.lvd142m"),
        ("my own ¿network?", [1], (64, 64), r"timm\.list_models\(\) lists"),
        ("hf-hub:somebody/something", [1], (64, 64), r"timm has no model 'hf-hub:somebody/something'"),
        ("test_resnet", [1, 6], (64, 64), r"test_resnet has no layer 6 \(outlayers \[1, 6\]\): its layers are 1 to 5"),
        ("test_vit", [0], (64, 64), r"test_vit has no layer 0 .*its layers are 1 to 6"),
        ("test_resnet", [], (64, 64), r"outlayers of test_resnet is empty.*1 to 5"),
        ("test_vit", [1], (72, 64), r"test_vit cannot be run on images of 72x64: .*divisible by patch size"),
        ("test_resnet", [5], (64, 80), r"layer 5 of test_resnet makes a 2x3 map of a 64x80 image, which is not a whole stride"),
    ],
)
def test_what_timm_lacks_is_one_line(name, layers, size, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, *layers, size=size)
    assert "\n" not in str(error.value)


def test_a_model_without_feature_maps_is_one_line(monkeypatch):
    monkeypatch.delattr(timm.models.VisionTransformer, "forward_intermediates")
    with pytest.raises(UserError, match="timm offers no feature maps of test_vit: choose another model"):
        build("test_vit", 1)


# ---- weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The caches of the hub and of torch hub, empty, and no server behind the hub's address; gives the hub's cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_ENDPOINT", NOBODY_LISTENS)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "hub"


def weights(name, **kwargs):
    """A state_dict of timm's model, classifier included, of other random numbers than `build` gives."""
    torch.manual_seed(2)
    return timm.create_model(name, **kwargs).state_dict()


def save(state_dict, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict, path) if path.suffix == ".safetensors" else torch.save(state_dict, path)
    return path


def load(name, path="", size=(64, 64)):
    return build(name, 1, pretrained=True, pretrained_model=str(path), size=size).model.state_dict()


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(("name", "head"), [("test_resnet", "fc."), ("test_vit", "head.")])
@pytest.mark.parametrize("classes", [1000, 10])
def test_weights_come_from_a_named_file_whatever_its_classifier(hub, tmp_path, name, head, file, classes):
    size = {"img_size": (64, 64)} if name == "test_vit" else {}
    given = weights(name, num_classes=classes, **size)
    loaded = load(name, save(given, tmp_path / file))
    assert loaded.keys() == {key for key in given if not key.startswith(head)}
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, given[key], rtol=0, atol=0)


def test_a_position_embedding_of_another_grid_is_resampled(hub, tmp_path):
    given = weights(DINOV2)  # 37 x 37 patches
    loaded = load(DINOV2, save(given, tmp_path / "dinov2.pth"), size=(56, 42))
    expected = resample_abs_pos_embed(given["pos_embed"], (4, 3), num_prefix_tokens=0)
    torch.testing.assert_close(loaded["pos_embed"], expected)
    torch.testing.assert_close(loaded["reg_token"], given["reg_token"], rtol=0, atol=0)


def test_dinov2_s_own_file_is_converted(hub, tmp_path):
    """It has other names, a token for masks, and counts the class token in the position embedding, which timm does not."""
    given = weights(DINOV2)
    at_class = torch.ones(1, 1, 384)
    published = given | {"mask_token": torch.zeros(1, 384), "register_tokens": given["reg_token"]}
    published |= {"pos_embed": torch.cat([at_class, given["pos_embed"]], dim=1)}
    del published["reg_token"]
    loaded = load(DINOV2, save(published, tmp_path / "dinov2_vits14_reg4_pretrain.pth"), size=(518, 518))
    assert loaded.keys() == given.keys()
    torch.testing.assert_close(loaded.pop("cls_token"), given["cls_token"] + at_class)
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, given[key], rtol=0, atol=0)


def refusal(name, path):
    with pytest.raises(UserError) as error:
        load(name, path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 500
    return message


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_the_weights_of_another_model_are_told(hub, tmp_path, file):
    message = refusal("test_vit", save(weights("test_resnet"), tmp_path / file))
    assert "does not hold the weights of test_vit" in message
    assert "Missing key(s)" in message


CONV = "layer3.0.conv1.weight"
CHANGES = {
    "missing": lambda given: {key: tensor for key, tensor in given.items() if key != CONV},
    "unexpected": lambda given: given | {"layer9.weight": torch.zeros(1)},
    "shape": lambda given: given | {CONV: torch.zeros(1)},
    "head only": lambda given: {"fc.weight": given["fc.weight"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_keys_of_a_file_are_checked_strictly(hub, tmp_path, change):
    path = save(CHANGES[change](weights("test_resnet")), tmp_path / "weights.pth")
    assert "does not hold the weights of test_resnet" in refusal("test_resnet", path)


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_a_missing_truncated_or_foreign_file_is_told(hub, tmp_path, file):
    path = tmp_path / file
    assert "no such file" in refusal("test_resnet", path)
    save(weights("test_resnet"), path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated or no file of weights" in refusal("test_resnet", path)
    path.write_bytes(b"<html>404</html>")
    assert "truncated or no file of weights" in refusal("test_resnet", path)


def test_weights_come_from_the_hub_s_cache(hub):
    given = weights("test_resnet")
    repository = hub / "models--timm--test_resnet.r160_in1k"
    save(given, repository / "snapshots" / "abc" / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    torch.testing.assert_close(load("test_resnet")["conv1.0.weight"], given["conv1.0.weight"], rtol=0, atol=0)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_weights_in_no_cache_are_downloaded_once(hub, tmp_path, monkeypatch):
    given = weights("test_resnet")
    served = tmp_path / "served"
    save(given, served / "timm" / "test_resnet.r160_in1k" / "resolve" / "main" / "model.safetensors")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(served))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_port}")
        first = load("test_resnet.r160_in1k")
        http.shutdown()
    shutil.rmtree(served)
    for loaded in (first, load("test_resnet")):
        torch.testing.assert_close(loaded["conv1.0.weight"], given["conv1.0.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_one_line_says_which_file_to_put_where(hub, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError) as error:
        load("test_vit")
    message = str(error.value)
    assert message.startswith("test_vit: the weights could not be downloaded")
    assert f"{NOBODY_LISTENS}/timm/test_vit.r160_in1k/resolve/main/model.safetensors" in message
    path = tmp_path / "torch" / "hub" / "checkpoints" / "timm-test_vit.r160_in1k-model.safetensors"
    assert f"put that file at {path}, or anywhere and name it in pretrained_model" in message
    assert "\n" not in message
    given = weights("test_vit")
    save(given, path)
    torch.testing.assert_close(load("test_vit")["cls_token"], given["cls_token"], rtol=0, atol=0)


def test_a_model_without_published_weights_is_told(hub):
    with pytest.raises(UserError, match=r"timm has no weights of vit_base_patch16_gap_224: name a file in pretrained_model"):
        load("vit_base_patch16_gap_224", size=(224, 224))


# ---- through the configuration


def timm_overrides(name, layers, stride):
    return [
        "net.backbone.type=models.backbones.timm",
        f"net.backbone.kwargs={{name: {name}, pretrained: False, outlayers: {layers}}}",
        f"net.neck.kwargs.outstrides=[{stride}]",
    ]


def test_the_rest_of_the_network_follows_from_the_model(tmp_path):
    overrides = [*timm_overrides(DINOV2, [3, 6], 14), "dataset.input_size=[56, 42]"]
    config = load_config(tiny.make(tmp_path), overrides)
    backbone, neck, reconstruction = (subnet.kwargs for subnet in config.net)
    assert backbone.input_size == [56, 42]
    assert (neck.inplanes, neck.instrides, neck.outplanes) == ([384, 384], [14, 14], [768])
    assert (reconstruction.inplanes, reconstruction.instrides, reconstruction.feature_size) == ([768], [14], [4, 3])
    network = build_network(config.net)
    assert network.train().backbone.model.training is False
    outputs = network.eval()({"image": image_of(56, 42)})
    assert outputs["feature_align"].requires_grad is False
    assert outputs["pred"].shape == (2, 1, 56, 42)


def test_levels_of_other_strides_are_resized_to_the_grid(tmp_path):
    config = load_config(tiny.make(tmp_path), [*timm_overrides("test_resnet", [1, 2, 3, 4], 14), "dataset.input_size=[112, 112]"])
    with torch.no_grad():
        outputs = build_network(config.net).eval()({"image": image_of(112, 112)})
    assert outputs["feature_align"].shape[2:] == (8, 8)
    assert outputs["pred"].shape == (2, 1, 112, 112)


def test_the_dinov2_experiment_has_a_grid_of_28_by_28():
    config = load_config(tiny.ROOT / "experiments/MVTec-AD-dinov2/config.yaml")
    assert config.net[0].kwargs.name == "vit_base_patch14_reg4_dinov2"
    assert config.net[1].kwargs.instrides == [14] * 4
    assert (config.net[2].kwargs.feature_size, config.net[2].kwargs.inplanes) == ([28, 28], [4 * 768])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (timm_overrides("test_resnett", [1], 8), r"config\.yaml: timm has no model 'test_resnett': did you mean test_resnet"),
        (timm_overrides("test_resnet", [6], 8), r"config\.yaml: test_resnet has no layer 6"),
        (timm_overrides("test_vit", [1], 12), r"input_size \[64, 64\] must be divisible by 12"),
        (["net.backbone.type=models.backbones.timm"], r"net\.backbone\.kwargs\.name is missing: the model as timm calls it"),
        (["net.backbone.kwargs.name=test_vit"], r"net\.backbone\.kwargs\.name is not a key"),
    ],
)
def test_a_wrong_configuration_is_one_line_before_anything_runs(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(tiny.make(tmp_path), overrides)
    assert "\n" not in str(error.value)


def test_pixel_values_other_than_the_weights_were_trained_with_are_one_line_of_warning(tmp_path, caplog):
    path = tiny.make(tmp_path)
    overrides = [*timm_overrides("vit_tiny_patch16_224", [1], 16), "net.backbone.kwargs.pretrained=True"]
    with caplog.at_level(logging.WARNING, logger="uniad"):
        load_config(path, [*overrides, "dataset.pixel_mean=[0.5, 0.5, 0.5]", "dataset.pixel_std=[0.5, 0.5, 0.5]"])
        assert caplog.messages == []
        load_config(path, overrides)
    (message,) = caplog.messages
    assert message.startswith("vit_tiny_patch16_224 was trained with pixel_mean [0.5, 0.5, 0.5], pixel_std [0.5, 0.5, 0.5]")


@pytest.mark.parametrize(("name", "layers", "stride"), [("test_resnet", [2, 3], 8), ("test_vit", [2, 4], 16)])
def test_training_and_evaluation_run_with_cached_features(tmp_path, caplog, name, layers, stride):
    path = tiny.make(tmp_path)
    overrides = timm_overrides(name, layers, stride)
    with caplog.at_level(logging.INFO, logger="uniad"):
        tiny.train(path, *overrides)
        trained = (tmp_path / "result" / "metrics.json").read_text()
        assert "10 training images" in caplog.text
        caches = set((tmp_path / "feature_cache").iterdir())
        assert len(caches) == 2
        tiny.train(path, *overrides, overwrite=True)
        assert (tmp_path / "result" / "metrics.json").read_text() == trained
        assert set((tmp_path / "feature_cache").iterdir()) == caches
        tiny.evaluate(path, *overrides)
    assert (tmp_path / "result" / "metrics.json").read_text() == trained


def test_another_model_layer_or_weight_has_a_cache_of_its_own(tmp_path):
    path = tiny.make(tmp_path)
    first = timm_overrides("test_vit", [2], 16)
    others = (timm_overrides("test_vit2", [2], 16), timm_overrides("test_vit", [3], 16), [*first, "random_seed=8"])
    for number, overrides in enumerate([first, *others], start=1):
        tiny.train(path, *overrides, overwrite=True)
        assert len(list((tmp_path / "feature_cache").iterdir())) == 2 * number  # training and test images


def test_timm_is_imported_only_where_it_is_configured():
    code = (
        "import sys, models; from utils.config import load_config; "
        f"load_config({str(tiny.ROOT / 'experiments/MVTec-AD/config.yaml')!r}); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, check=False).returncode == 0


def test_other_backbones_take_safetensors_too(tmp_path):
    given = BACKBONES["resnet18"](pretrained=False, outlayers=[1]).state_dict()
    path = save(given, tmp_path / "resnet18.safetensors")
    loaded = BACKBONES["resnet18"](pretrained=True, outlayers=[1], pretrained_model=str(path)).state_dict()
    torch.testing.assert_close(loaded["conv1.weight"], given["conv1.weight"], rtol=0, atol=0)
