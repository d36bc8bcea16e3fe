"""tools/add_class.py: more classes for a checkpoint's memory."""

from pathlib import Path

import pytest
import torch

from datasets.lists import read_list, write_list
from tests.helpers import tiny
from tools import add_class as tool
from utils.errors import UserError
from utils.predict.predictor import Predictor
from utils.process.checkpoint import load_checkpoint
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
    ],
)
def test_a_list_that_does_not_suit_is_one_line(cups: Path, list_name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_classes(cups, cups.parents[1] / f"data/{list_name}.json")


def test_a_network_without_a_memory_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="its network has no memory to add a class to"):
        add_classes(checkpoint, checkpoint.parents[1] / "data/train.json")
    with pytest.raises(UserError, match="its network has no memory, so there is no class to compare with"):
        Predictor.from_checkpoint(checkpoint, memory_class="cup")


def test_the_tool_writes_beside_the_checkpoint(cups: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "sys.argv", ["add_class.py", "--checkpoint", str(cups), "--list", str(cups.parents[1] / "data/tile.json")]
    )
    tool.main()
    assert (out := cups.with_name("ckpt+tile.pth.tar")).is_file()
    assert capsys.readouterr().out.startswith(f"{out}: tile added")
