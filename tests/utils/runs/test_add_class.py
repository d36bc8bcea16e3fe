"""tools/add_class.py: more classes for a checkpoint's memory."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datasets.lists import read_list, record, write_list
from tests.helpers import tiny
from tools import add_class as tool
from tools import predict as predict_tool
from utils.errors import UserError
from utils.evaluation.calibration import Calibration, Threshold, file_hash, save_calibration
from utils.predict.export import export_checkpoint
from utils.predict.onnx_engine import OnnxEngine
from utils.predict.predictor import Predictor
from utils.process.checkpoint import load_checkpoint, save_checkpoint
from utils.runs.add_class import add_classes


@pytest.fixture(scope="module")
def cups(tmp_path_factory) -> Path:
    """The checkpoint of a memory of cups; tile.json beside its lists has the good tiles."""
    path = tiny.make(tmp_path_factory.mktemp("add"))
    records = read_list(path.parent / "data/train.json")
    for clsname in ("cup", "tile"):
        write_list([record for record in records if record["clsname"] == clsname], path.parent / f"data/{clsname}.json")
    tiny.train(path, tiny.MEMORY, "dataset.train.meta_file=data/cup.json")
    return path.parent / "checkpoints/ckpt.pth.tar"


@pytest.fixture(scope="module")
def added(cups: Path, tmp_path_factory) -> tuple[Path, str]:
    """The checkpoint with tiles added, and what the tool said."""
    out = tmp_path_factory.mktemp("added") / "both.pth.tar"
    return out, add_classes(cups, cups.parents[1] / "data/tile.json", tokens=50, out=out)


def test_what_was_there_stays_and_the_new_class_has_its_tokens(cups: Path, added: tuple[Path, str]) -> None:
    before, after = (load_checkpoint(path)["state_dict"] for path in (cups, added[0]))
    there = len(before["module.reconstruction.tokens"])
    for name, tensor in before.items():
        if not name.endswith("names"):
            grows = name.endswith(("tokens", "owner"))
            assert torch.equal(after[name][:there] if grows else after[name], tensor), name
    assert after["module.reconstruction.owner"][there:].tolist() == [1] * 50


def test_it_says_what_the_addition_does_to_the_scores_of_the_test_set(added: tuple[Path, str]) -> None:
    first, header, _, cup, tile, _, mean = added[1].splitlines()
    assert first == f"{added[0]}: tile added from 5 images; the memory has 250 tokens"
    assert header.split()[:3] == ["class", "AUROC", "before"]
    assert [line.split()[0] for line in (cup, tile, mean)] == ["cup", "tile", "mean"]
    good_before, good_after = map(float, tile.split()[3:5])
    assert good_after < good_before / 2  # tiles are normal now
    assert float(cup.split()[3]) >= float(cup.split()[4])  # a larger memory raises no distance


def test_one_class_alone_gives_no_smaller_score_and_another_class_a_larger_one(cups: Path, added: tuple[Path, str]) -> None:
    image = cups.parents[1] / "data/tile/test/good/000.png"
    whole, tiles, only_cups = (Predictor.from_checkpoint(added[0], memory_class=name)(image)[0] for name in (None, "tile", "cup"))
    assert whole <= tiles < only_cups


@pytest.mark.parametrize(
    ("list_name", "message"),
    [
        ("cup", "the memory has the class cup already; its classes are cup"),
        ("test", "is defective .label 1.; a memory is of normal"),
        ("gone", "there is no list .*gone.json"),
        ("empty", "the list .*empty.json names no image"),
        ("broken", "broken.json:1: not valid JSON"),
        ("absent", "there is no file no/such.png in image_dir .*listed in .*absent.json"),
        ("damaged", "broken.json in image_dir .* is not an image that OpenCV can read"),
    ],
)
def test_a_list_that_does_not_suit_is_one_line_and_writes_nothing(
    cups: Path, tmp_path: Path, list_name: str, message: str
) -> None:
    lists = cups.parents[1] / "data"
    (lists / "empty.json").write_text("")
    (lists / "broken.json").write_text("{")
    for name, filename in (("absent", "no/such.png"), ("damaged", "broken.json")):
        write_list([record(filename, 0, "saucer")], lists / f"{name}.json")
    with pytest.raises(UserError, match=message) as caught:
        add_classes(cups, lists / f"{list_name}.json", out=tmp_path / "out.pth.tar")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_or_folder_that_does_not_serve_is_one_line(cups: Path, tmp_path: Path) -> None:
    tiles = cups.parents[1] / "data/tile.json"
    with pytest.raises(UserError, match=r"gone.pth.tar: there is no such checkpoint"):
        add_classes(tmp_path / "gone.pth.tar", tiles)
    with pytest.raises(UserError, match=r"tile.json: damaged or not a checkpoint"):
        add_classes(tiles, tiles)
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        add_classes(cups, tiles, image_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"tile.json.*: cannot be written"):
        add_classes(cups, tiles, out=tiles / "out.pth.tar")


def test_the_tool_refuses_a_number_of_tokens_below_1_and_ends_bad_input_with_2(cups: Path) -> None:
    for arguments, message in (("--tokens 0", "--tokens"), ("", "error: the memory has the class")):
        command = [sys.executable, tiny.ROOT / "tools/add_class.py", "--checkpoint", cups]
        command += ["--list", cups.parents[1] / "data/cup.json", *arguments.split()]
        outcome = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
        assert (outcome.returncode, outcome.stdout) == (2, "")
        assert message.removeprefix("error: ") in outcome.stderr
        assert "Traceback" not in outcome.stderr


def test_a_slash_in_a_class_s_name_is_none_in_the_file_s(cups: Path) -> None:
    lists = cups.parents[1] / "data"
    write_list([{**line, "clsname": "wall/tile"} for line in read_list(lists / "tile.json")], lists / "wall.json")
    assert add_classes(cups, lists / "wall.json").startswith(str(cups.with_name("ckpt+wall_tile.pth.tar")))


def test_images_may_lie_in_another_folder_also_where_the_test_set_has_its_own(cups: Path, tmp_path: Path) -> None:
    content, lists = load_checkpoint(cups), cups.parents[1] / "data"
    shutil.copytree(lists / "tile", tmp_path / "photos/tile")
    data = content["config"]["dataset"]
    data["test"]["image_reader"] = data["image_reader"]
    data["image_reader"] = {"type": "opencv", "kwargs": {"image_dir": str(tmp_path / "gone"), "color_mode": "RGB"}}
    save_checkpoint(tmp_path / "ckpt.pth.tar", content)
    given = {"meta_file": lists / "tile.json", "image_dir": tmp_path / "photos", "tokens": 50}
    assert "tile added from 5 images" in add_classes(tmp_path / "ckpt.pth.tar", **given)


def test_without_the_test_set_classes_are_added_and_not_compared(cups: Path, tmp_path: Path) -> None:
    content = load_checkpoint(cups)
    content["config"]["dataset"]["test"]["meta_file"] = str(tmp_path / "gone.json")
    save_checkpoint(tmp_path / "ckpt.pth.tar", content)
    said = add_classes(tmp_path / "ckpt.pth.tar", cups.parents[1] / "data/tile.json", tokens=50)
    assert said.splitlines()[1] == "no test images of the other classes are at hand, so their scores were not compared"


def test_an_exported_file_names_the_classes_of_the_memory(added: tuple[Path, str], tmp_path: Path) -> None:
    export_checkpoint(added[0], "onnx", tmp_path / "both.onnx")
    assert OnnxEngine(tmp_path / "both.onnx").classes == ["cup", "tile"]


def test_a_network_without_a_memory_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="its network has no memory to add a class to"):
        add_classes(checkpoint, checkpoint.parents[1] / "data/train.json")
    with pytest.raises(UserError, match="its network has no memory, so there is no class to compare with"):
        Predictor.from_checkpoint(checkpoint, memory_class="cup")


@pytest.fixture
def predict(added: tuple[Path, str], cups: Path, tmp_path: Path, monkeypatch):
    """tools/predict.py on the image of a tile: predict(option, ...) returns its line."""

    def call(*options: str, checkpoint: Path = added[0], out: str = "out") -> dict[str, str]:
        image, folder = cups.parents[1] / "data/tile/test/good/000.png", tmp_path / out
        given = ["predict.py", "--checkpoint", str(checkpoint), "--out", str(folder), "--no_pictures", str(image), *options]
        monkeypatch.setattr(sys, "argv", given)
        predict_tool.main()
        with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
            return next(csv.DictReader(file))

    return call


def test_predict_compares_with_all_classes_or_with_the_one_that_memory_class_names(predict, cups: Path, added) -> None:
    image = cups.parents[1] / "data/tile/test/good/000.png"
    for name in (None, "tile", "cup"):
        options = ("--memory_class", name) if name else ()
        expected = Predictor.from_checkpoint(added[0], memory_class=name)(image)[0]
        assert float(predict(*options, out=str(name))["score"]) == pytest.approx(expected, rel=1e-5)
    alone = float(predict(out="before", checkpoint=cups)["score"])  # tiles were added to it
    assert alone == pytest.approx(expected, rel=1e-5)


def test_scores_by_one_class_do_not_go_into_a_folder_of_scores_by_another(predict) -> None:
    predict("--memory_class", "tile")
    for options in ((), ("--memory_class", "cup")):
        with pytest.raises(UserError, match=r"score"):
            predict(*options)


def test_what_memory_class_cannot_do_is_one_line(predict, added: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the memory has no class 'til': its classes are cup, tile"):
        predict("--memory_class", "til")
    with pytest.raises(UserError, match=r"--class_name's threshold is of scores by the whole memory: .* give --threshold"):
        predict("--memory_class", "tile", "--class_name", "tile")
    export_checkpoint(added[0], "onnx", tmp_path / "both.onnx")
    with pytest.raises(UserError, match=r"an exported file compares with all classes; give the checkpoint"):
        predict("--memory_class", "tile", checkpoint=tmp_path / "both.onnx")


def test_thresholds_of_the_whole_memory_are_not_used_with_one_class(predict, added: tuple[Path, str], tmp_path: Path) -> None:
    (path := tmp_path / "ckpt.pth.tar").write_bytes(added[0].read_bytes())
    threshold = Threshold(1e-6, 20, (0.01, 0.2))
    save_calibration(Calibration("max", 0.05, path.name, file_hash(path), 1, "images", threshold, {"tile": threshold}), path)
    for options, decided in (
        ((), True),
        (("--memory_class", "tile"), False),
        (("--memory_class", "tile", "--threshold", "9"), True),
    ):
        assert bool(predict(*options, checkpoint=path, out=str(options))["decision"]) == decided


def test_the_tool_writes_beside_the_checkpoint(cups: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "sys.argv", ["add_class.py", "--checkpoint", str(cups), "--list", str(cups.parents[1] / "data/tile.json")]
    )
    tool.main()
    assert (out := cups.with_name("ckpt+tile.pth.tar")).is_file()
    assert capsys.readouterr().out.startswith(f"{out}: tile added")
