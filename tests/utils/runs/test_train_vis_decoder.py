"""A vis decoder is trained for one class, in the class's folder, and draws the same pictures after loading."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.lists import lists_from_tree, read_list, write_list
from models import build_network
from tests.helpers import tiny
from tests.helpers.vis_runs import TOOL, files, load, make, one_thread, read, run_tool, train
from utils.config import load_config
from utils.errors import UserError
from utils.process.checkpoint import load_checkpoint
from utils.process.distributed import Process
from utils.report.drawing import save_picture
from utils.runs.vis_decoder import check_set, draw_check_images, draw_pairs, load_decoder, training_classes

SECTIONS = ("dataset", "criterion", "trainer", "saver", "net")


def weights(content: dict) -> dict[str, torch.Tensor]:
    return content["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The configuration of a decoder of cup that was trained for two epochs."""
    path = make(tmp_path_factory.mktemp("trained"))
    train(path)
    return path


# --- training ---


def test_it_learns_to_draw(path: Path) -> None:
    losses = [
        epoch["loss"]
        for epoch in train(path, "cup", "trainer.max_epoch=8", "trainer.optimizer.kwargs.lr=0.02", "visualization=False")[
            "history"
        ]
    ]
    assert np.mean(losses[-2:]) < 0.85 * np.mean(losses[:2])


def test_the_same_seed_trains_the_same_decoder_however_its_images_are_listed(trained: Path, path: Path) -> None:
    for clsname in ("cup", "tile"):
        records = [record for record in read_list(path.parent / "data/test.json") if record["clsname"] == clsname]
        write_list(records, path.parent / f"data/of_{clsname}.json")
    lists = [f"dataset.{split}.meta_file=data/of_{{class_name}}.json" for split in ("train", "test")]
    content = train(path, "cup", *lists)
    assert same(weights(content), weights(load_checkpoint(trained.parent / "cup/checkpoints/ckpt.pth.tar")))


def test_images_of_other_classes_have_no_part_in_it(trained: Path, path: Path) -> None:
    for file in path.parent.glob("data/tile/**/*.png"):
        file.write_bytes(b"not an image")
    content = train(path)
    assert same(weights(content), weights(load_checkpoint(trained.parent / "cup/checkpoints/ckpt.pth.tar")))


def test_drawing_leaves_the_training_as_it_is(trained: Path, path: Path) -> None:
    """Weights, statistics of batch norms and random numbers."""
    content = train(path, "cup", "visualization=False")
    assert same(weights(content), weights(load_checkpoint(trained.parent / "cup/checkpoints/ckpt.pth.tar")))
    assert not files(path.parent, "*.jpg")


def test_a_resumed_training_ends_as_an_uninterrupted_one(path: Path, trained: Path) -> None:
    train(path, "cup", "trainer.max_epoch=1")
    content = train(path)
    expected = load_checkpoint(trained.parent / "cup/checkpoints/ckpt.pth.tar")
    assert same(weights(content), weights(expected))
    assert content["history"] == expected["history"]
    assert [epoch["epoch"] for epoch in content["history"]] == [1, 2]


def test_a_finished_training_is_kept_until_it_is_overwritten(path: Path) -> None:
    first = train(path, "cup", "trainer.max_epoch=1")
    assert same(weights(train(path, "cup", "trainer.max_epoch=1", "random_seed=8")), weights(first))
    assert not same(weights(train(path, "cup", "trainer.max_epoch=1", "random_seed=8", overwrite=True)), weights(first))


def test_the_best_checkpoint_has_the_lowest_training_loss(path: Path) -> None:
    # At this learning rate the loss goes up and down: 15, 0.6, 3.
    last = train(path, "cup", "trainer.max_epoch=3", "trainer.optimizer.kwargs.lr=1", "visualization=False")
    losses = [epoch["loss"] for epoch in last["history"]]
    best = load_checkpoint(path.parent / "cup/checkpoints/ckpt_best.pth.tar")
    assert best["epoch"] == 1 + int(np.argmin(losses)) == 2
    assert best["best_metric"] == last["best_metric"] == min(losses)


# --- files ---


def test_everything_is_written_below_the_folder_of_the_class(path: Path) -> None:
    before = files(path.parent)
    train(path, "cup", "trainer.max_epoch=1")
    written = files(path.parent) - before
    tensorboard = {name for name in written if name.startswith("cup/log/tensorboard/")}
    assert tensorboard
    assert written - tensorboard == {
        "cup/checkpoints/ckpt.pth.tar",
        "cup/checkpoints/ckpt_best.pth.tar",
        "cup/checkpoints/ckpt_previous.pth.tar",
        "cup/vis/epoch_0001.jpg",
    }


def test_a_check_sheet_is_drawn_every_so_many_epochs_and_after_the_last(path: Path) -> None:
    train(path, "cup", "trainer.max_epoch=3", "visualization.vis_freq_epoch=2")
    sheets = path.parent / "cup/vis"
    assert files(sheets) == {"epoch_0002.jpg", "epoch_0003.jpg"}
    assert read(sheets / "epoch_0003.jpg").shape == (2 * 64, 5 * 64, 3)  # image over drawing, for each of 5 images


# --- drawing ---


def test_a_decoder_that_was_saved_and_loaded_draws_the_same_picture(trained: Path, tmp_path: Path) -> None:
    config = load(trained)
    checks = check_set(config)
    with one_thread():
        network = load_decoder(config, Process())
        sheet = np.hstack([pair for _, pair in draw_pairs(network, checks, range(len(checks)))])
    save_picture(tmp_path, "sheet.jpg", sheet)
    assert (tmp_path / "sheet.jpg").read_bytes() == (trained.parent / "cup/vis/epoch_0002.jpg").read_bytes()


def test_drawing_changes_nothing_in_the_network(trained: Path) -> None:
    config = load(trained)
    network = build_network(config.net, with_pretrained=False).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ((_, pair),) = draw_pairs(network, check_set(config), [0])
    assert same(network.state_dict(), before)
    ((_, again),) = draw_pairs(network, check_set(config), [0])
    assert np.array_equal(again, pair)


@pytest.mark.parametrize(
    "override",
    [
        "dataset.image_reader.kwargs.color_mode=RGB",
        "dataset.image_reader.kwargs.color_mode=BGR",
        "dataset.test.pixel_std=[1, 1, 1]",
    ],
)
def test_the_upper_half_is_the_image_in_its_colours(path: Path, override: str) -> None:
    tiny.save_image(path.parent / "data/cup/test/good/000.png", np.full((64, 64, 3), (0, 100, 250), np.uint8))  # BGR
    config = load(path, "cup", override)
    ((_, pair),) = draw_pairs(build_network(config.net, with_pretrained=False), check_set(config), [0])
    assert pair.shape == (128, 64, 3)
    assert (pair[:64] == (250, 100, 0)).all()


def test_v_draws_every_test_image_and_trains_nothing(trained: Path) -> None:
    folder = trained.parent / "cup"
    before = (folder / "checkpoints/ckpt.pth.tar").read_bytes()
    outcome = run_tool(TOOL, trained, "--class_name=cup", "-v", "visualization.vis_dir=drawn")
    assert outcome.code == 0, outcome.stderr
    assert files(folder / "drawn") == {"good/000.jpg", "good/001.jpg", "hole/000.jpg", "hole/001.jpg", "hole/002.jpg"}
    assert str(folder / "drawn") in outcome.stdout.splitlines()[-1]
    assert (folder / "checkpoints/ckpt.pth.tar").read_bytes() == before


@pytest.mark.parametrize("value", ["False", "null"])
def test_without_visualization_it_trains_and_draws_nothing(path: Path, value: str) -> None:
    train(path, "cup", "trainer.max_epoch=1", f"visualization={value}")
    assert (path.parent / "cup/checkpoints/ckpt.pth.tar").is_file()
    assert not (path.parent / "cup/vis").exists()


def test_v_with_visualization_off_says_so(trained: Path) -> None:
    with pytest.raises(UserError, match="visualization is off"):
        draw_check_images(load(trained, "cup", "visualization=False"), Process())


def test_a_checkpoint_of_another_network_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match=r"cup/checkpoints/ckpt\.pth\.tar: a checkpoint of another network"):
        load_decoder(load(trained, "cup", "net.reconstruction.kwargs.width=16"), Process())


def test_a_network_without_a_decoder_is_refused(path: Path) -> None:
    path.write_text(tiny.CONFIG)
    with pytest.raises(UserError, match="VisDecoder"):
        load_decoder(load_config(path), Process())


# --- classes ---


def test_two_classes_train_at_once_in_two_processes_each(path: Path) -> None:
    """Each with a port and a folder of its own; a class's name may hold a space and letters beyond ASCII."""
    data, ribbon = path.parent / "data", "mètre à ruban"
    (data / "tile").rename(data / ribbon)
    write_list(lists_from_tree(data)[1], data / "test.json")
    before = files(path.parent)
    commands = {clsname: tiny.command(path, f"--class_name={clsname}", processes=2, script=TOOL) for clsname in ("cup", ribbon)}
    env = tiny.environment()
    runs = {
        clsname: subprocess.Popen(command, cwd="/", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for clsname, command in commands.items()
    }
    outputs = {clsname: run.communicate()[0] for clsname, run in runs.items()}
    for clsname, images in (("cup", 5), (ribbon, 4)):
        assert runs[clsname].returncode == 0, outputs[clsname]
        assert f"{clsname}: {images} training images" in (path.parent / clsname / "log/train.log").read_text(encoding="utf-8")
        assert files(path.parent / clsname / "vis") == {"epoch_0001.jpg", "epoch_0002.jpg"}
        content = load_checkpoint(path.parent / clsname / "checkpoints/ckpt.pth.tar")
        assert content["config"]["dataset"]["class_name"] == clsname
        assert content["epoch"] == 2
    assert {name.split("/")[0] for name in files(path.parent) - before} == {"cup", ribbon}


def test_an_unknown_class_is_one_line_that_names_those_there_are(path: Path) -> None:
    with pytest.raises(UserError, match=r"^.*'cupp': its classes are cup, tile$"):
        train(path, "cupp")
    assert not files(path.parent, "*.tar")


@pytest.mark.parametrize("clsname", ["../x", "/x", "a/b", "a\\b", "..", ".", ""])
def test_a_class_name_that_leads_to_another_folder_is_refused(path: Path, clsname: str) -> None:
    with pytest.raises(UserError, match="cannot be a class"):
        load(path, clsname)


def test_the_classes_are_those_of_the_list(path: Path) -> None:
    assert training_classes(path) == ["cup", "tile"]


def test_the_classes_are_those_that_have_a_list(path: Path) -> None:
    pattern = "dataset.train.meta_file=data/of_{class_name}.json"
    with pytest.raises(UserError, match="there is no list"):
        training_classes(path, [pattern])
    for clsname in ("tile", "cup"):
        write_list(read_list(path.parent / "data/test.json"), path.parent / f"data/of_{clsname}.json")
    assert training_classes(path, [pattern]) == ["cup", "tile"]
