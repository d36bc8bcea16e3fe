"""vis_query draws the learned queries of every decoder layer, in order, then the baselines."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from easydict import EasyDict
from torch import nn

from models import build_network
from tests.helpers import tiny
from tests.helpers.golden_cases import golden_weights
from tests.helpers.vis_runs import NET, files, one_thread, read, run_tool
from utils.config import load_config
from utils.errors import UserError
from utils.process.checkpoint import load_checkpoint, network_state, save_checkpoint
from utils.process.distributed import Process
from utils.runs.vis_decoder import load_decoder, to_picture
from utils.runs.vis_query import draw_queries, query_classes

TOOL = tiny.ROOT / "tools" / "vis_query.py"
SECTIONS = ("data", "vis_query", "saver", "net")
SIZE, LAYERS = 64, 11  # more than ten: sorted by name, layer 10 would come before layer 2
BAR = SIZE // 11  # the label above a panel

CONFIG = (
    """
random_seed: 3
data:
  dataset_dir: data
  input_size: [64, 64]
  pixel_mean: [0.485, 0.456, 0.406]
  pixel_std: [0.229, 0.224, 0.225]
vis_query: {model_path: checkpoints/ckpt.pth.tar}
saver: {load_path: "decoders/{class_name}.pth.tar", save_dir: pictures, log_dir: log}
"""
    + NET
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """The folder of a UniAD's checkpoint and of decoders of cup and tile."""
    folder = tmp_path_factory.mktemp("networks")
    path = write_config(folder)
    save(uniad(path), folder / "checkpoints/ckpt.pth.tar")
    for clsname in ("cup", "tile"):
        save(golden_weights(build_network(load(path, clsname=clsname).net)), folder / f"decoders/{clsname}.pth.tar")
    return folder


@pytest.fixture
def path(tmp_path: Path, networks: Path) -> Path:
    """The configuration that draws the UniAD with the decoders."""
    for name in ("checkpoints", "decoders"):
        (tmp_path / name).symlink_to(networks / name, target_is_directory=True)
    return write_config(tmp_path)


def write_config(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    return path


def save(network: nn.Module, path: Path) -> None:
    save_checkpoint(path, {"epoch": 1, "state_dict": network_state(network)})


def uniad(path: Path, name: str = "reconstruction") -> nn.Module:
    """A UniAD whose subnet has this name and whose queries are far apart."""
    file = path.parent / "uniad.yaml"
    file.write_text(tiny.CONFIG.replace("name: reconstruction", f"name: {name}"))
    overrides = ["net.neck.kwargs.outstrides=[16]", f"net.{name}.kwargs.num_decoder_layers={LAYERS}"]
    network = build_network(load_config(file, overrides).net)
    golden_weights(getattr(network, name))
    with torch.no_grad():
        for queries in queries_of(network, name):
            queries *= 40
    return network


def queries_of(network: nn.Module, name: str = "reconstruction") -> list[torch.Tensor]:
    """Of each decoder layer, hw x D."""
    return [layer.learned_embed.weight for layer in getattr(network, name).transformer.decoder.layers]


def load(path: Path, *overrides: str, clsname: str = "cup") -> EasyDict:
    return load_config(path, overrides, SECTIONS, clsname)


def draw(path: Path, *overrides: str) -> Path:
    with one_thread():
        draw_queries(load(path, *overrides), Process(), "cup")
    return path.parent / "pictures/cup/queries.jpg"


def panels(strip: Path, bar: int = BAR) -> list[np.ndarray]:
    pixels = read(strip)
    assert pixels.shape == (bar + SIZE, (LAYERS + 3) * SIZE, 3)
    return np.split(pixels[bar:], LAYERS + 3, axis=1)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """The same picture except for JPEG artefacts, which stay within blocks of 8x8 pixels."""
    return np.abs(cv2.resize(one.astype(float) - other, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)).mean() < 4


# --- pictures ---


def test_the_strip_is_the_queries_of_each_layer_in_order_and_the_baselines(path: Path) -> None:
    config, network = load(path), uniad(path)
    decoder = load_decoder(config, Process()).reconstruction

    def picture_of(tokens: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            features = network.reconstruction.output_proj(tokens).T.reshape(1, -1, 4, 4)
            return to_picture(decoder({"feature_align": features})["image_rec"][0], config.data.pixel_mean, config.data.pixel_std)

    expected = [picture_of(queries) for queries in queries_of(network)]
    shown = panels(draw(path))
    assert all(map(alike, shown, expected))
    assert not any(alike(expected[i], expected[j]) for i in range(LAYERS) for j in range(i))  # or the order would not show
    assert alike(shown[LAYERS + 1], picture_of(torch.ones(16, 16)))
    assert alike(shown[LAYERS + 2], picture_of(torch.zeros(16, 16)))


def test_the_random_baseline_follows_from_the_seed(path: Path) -> None:
    before = panels(draw(path))
    assert all(map(np.array_equal, panels(draw(path)), before))
    after = panels(draw(path, "random_seed=4"))
    differs = [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
    assert differs[LAYERS]
    assert not any(differs[: LAYERS - 1] + differs[LAYERS + 2 :])  # JPEG spreads the difference to the neighbouring panels


def test_labels_can_be_left_out(path: Path) -> None:
    labelled = panels(draw(path))
    assert all(map(alike, panels(draw(path, "vis_query.with_text=False"), bar=0), labelled))


def test_queries_of_standardised_features_are_drawn_in_the_backbone_s_units(path: Path) -> None:
    """The projection gives standardised features here; with the statistics undone the pictures are the same."""
    expected = panels(draw(path))
    state = load_checkpoint(path.parent / "checkpoints/ckpt.pth.tar")["state_dict"]
    channels = state["module.reconstruction.output_proj.bias"].shape[0]
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(channels, generator=generator), torch.rand(channels, generator=generator) + 0.5
    for name, value in {"count": torch.tensor(9.0), "mean": mean, "variance": deviation**2}.items():
        state[f"module.neck.standardise.{name}"] = value
    state["module.reconstruction.output_proj.weight"] /= deviation[:, None]
    state["module.reconstruction.output_proj.bias"] = (state["module.reconstruction.output_proj.bias"] - mean) / deviation
    save_checkpoint(path.parent / "standardised.tar", {"epoch": 1, "state_dict": state})
    assert all(map(alike, panels(draw(path, "vis_query.model_path=standardised.tar")), expected))


def test_the_checkpoint_s_subnet_may_have_any_name(path: Path) -> None:
    expected = draw(path).read_bytes()
    save(uniad(path, "rebuild"), path.parent / "other.tar")
    assert draw(path, "vis_query.model_path=other.tar").read_bytes() == expected


def test_its_sizes_may_be_given_as_a_check(path: Path) -> None:
    assert draw(path, "vis_query.hidden_dim=16", f"vis_query.num_decoder_layers={LAYERS}").is_file()


# --- errors ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vis_query.model_path=absent"], r"absent: there is no such checkpoint"),
        (["vis_query.model_path=decoders/cup.pth.tar"], r"decoders/cup\.pth\.tar: not a checkpoint of UniAD"),
        (["net.neck.kwargs.standardise=True"], r"net\.neck\.kwargs\.standardise: vis decoders draw features as they are"),
        (["saver.load_path=absent"], r"absent: there is no such checkpoint"),
        (["saver.load_path=checkpoints/ckpt.pth.tar"], r"ckpt\.pth\.tar: a checkpoint of another network"),
        (["vis_query.hidden_dim=8"], r"ckpt\.pth\.tar: .*vis_query\.hidden_dim\) is 16, not 8"),
        (["vis_query.num_decoder_layers=4"], r"ckpt\.pth\.tar: .*vis_query\.num_decoder_layers\) is 11, not 4"),
        (["data.input_size=[32, 64]"], r"ckpt\.pth\.tar: .*2x4 grid of data\.input_size\) is 16, not 8"),
        (["net.backbone.kwargs.outlayers=[1, 2]"], r"ckpt\.pth\.tar: .*outlayers\) is 80, not 40"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_drawn(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        draw(path, *overrides)
    assert "\n" not in str(error.value)
    assert not (path.parent / "pictures").exists()


# --- the tool ---


def test_the_tool_says_where_the_picture_is(path: Path) -> None:
    outcome = run_tool(TOOL, path, "--class_name=tile")
    assert outcome.code == 0, outcome.stderr
    assert files(path.parent / "pictures") == {"tile/queries.jpg"}
    strip = str(path.parent / "pictures/tile/queries.jpg")
    assert outcome.stdout.splitlines()[-1].endswith(strip)
    assert (path.parent / "log/vis_query_tile.log").read_text().splitlines()[-1].endswith(strip)


def test_its_classes_are_those_with_a_decoder(path: Path) -> None:
    assert query_classes(path) == ["cup", "tile"]
    with pytest.raises(UserError, match=r"there is no vis decoder .*nowhere/\*\.tar"):
        query_classes(path, ["saver.load_path=nowhere/{class_name}.tar"])
    with pytest.raises(UserError, match=r"load_path has no \{class_name\} in it"):
        query_classes(path, ["saver.load_path=decoders/cup.pth.tar"])
