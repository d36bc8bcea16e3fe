"""One model a class (dataset.separate): each equals the model trained alone, in its own folder; their tables are joined."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny
from tests.helpers.project_copy import copy_project, sh
from utils.config import load_config
from utils.errors import UserError
from utils.process.checkpoint import load_checkpoint
from utils.process.distributed import Process
from utils.runs.evaluate import evaluate_checkpoint
from utils.runs.per_class import run_per_class
from utils.runs.train import train

SEPARATE = ("dataset.separate=True", "saver.auto_resume=True")
NAMES = ("mean", "std", "max", "pixel")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An experiment trained by `sh train_torch.sh 2 cpu dataset.separate=True`, and its output."""
    experiment = copy_project(tmp_path_factory.mktemp("a folder with spaces") / "project")
    done = sh(experiment / "train_torch.sh", "2", "cpu", *SEPARATE, cwd=experiment.parent)
    assert done.returncode == 0, done.stderr
    return experiment, done.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.fixture
def run() -> Iterator:
    """Trains, or with evaluate=True evaluates, one model a class in this process; the log is restored afterwards."""
    log, threads = logging.getLogger("uniad"), torch.get_num_threads()
    before = log.level, log.propagate, list(log.handlers)

    def call(path: Path, *overrides: str, evaluate: bool = False, overwrite: bool = False) -> None:
        torch.set_num_threads(1)
        action = evaluate_checkpoint if evaluate else partial(train, overwrite=overwrite)
        run_per_class(path, [*SEPARATE, *overrides], Process(), "eval" if evaluate else "train", action)

    yield call
    log.level, log.propagate, log.handlers[:] = before
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "ckpt.pth.tar")["state_dict"]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def assert_joined(folder: Path) -> None:
    """The result folder of the experiment `folder` holds the numbers of its classes' result folders, and their means."""
    joined = read_metrics(folder / "result")
    of_classes = {clsname: read_metrics(folder / clsname / "result") for clsname in ("cup", "tile")}
    assert list(joined) == [f"{clsname}_{name}_auc" for clsname in ("cup", "tile", "mean") for name in NAMES]
    for name in NAMES:
        numbers = [of_classes[clsname][f"{clsname}_{name}_auc"] for clsname in ("cup", "tile")]
        assert [joined[f"{clsname}_{name}_auc"] for clsname in ("cup", "tile")] == numbers
        assert joined[f"mean_{name}_auc"] == pytest.approx(sum(numbers) / 2)
    rows = [line.split() for line in (folder / "result/table.txt").read_text().splitlines() if "--" not in line]
    assert rows == [
        ["clsname", *NAMES],
        *([clsname, *(f"{joined[f'{clsname}_{name}_auc']:.4f}" for name in NAMES)] for clsname in ("cup", "tile", "mean")),
    ]


# --- by the scripts ---


def test_two_processes_train_a_model_a_class_and_end_with_the_joined_table(scripts: tuple[Path, str]):
    experiment, printed = scripts
    assert re.findall(r"^class .*", printed, re.MULTILINE) == ["class cup, 1 of 2", "class tile, 2 of 2"]
    for images in ("5 test images", "4 test images"):
        assert f"5 training images, {images}; 2 processes on CPU" in printed
    for clsname in ("cup", "tile"):
        for file in ("checkpoints/ckpt.pth.tar", "log/train.log", "log/tensorboard", "result/table.txt", "result/scores.csv"):
            assert (experiment / clsname / file).exists(), (clsname, file)
        config = load_checkpoint(experiment / clsname / "checkpoints/ckpt.pth.tar")["config"]
        assert (config["dataset"]["class_name"], config["dataset"]["separate"]) == (clsname, False)
        assert "visualization" not in config
    assert not (experiment / "checkpoints").exists()
    assert_joined(experiment)
    table = (experiment / "result/table.txt").read_text().strip()
    assert printed.strip().endswith(table)
    assert table in re.sub(r"^[\d-]+ [\d:,]+ ", "", (experiment / "log/train.log").read_text(), flags=re.MULTILINE)


def test_evaluation_writes_a_report_a_class_and_the_joined_table(scripts: tuple[Path, str], tmp_path: Path):
    experiment = Path(shutil.copytree(scripts[0].parent.parent, tmp_path / "project")) / "experiments/tiny"
    before = (experiment / "result/table.txt").read_text()
    shutil.rmtree(experiment / "result")
    pictures = ("evaluator.vis_compound.save_dir=result/vis", "net.reconstruction.kwargs.save_recon.save_dir=features")
    done = sh("eval_torch.sh", "1", "cpu", *SEPARATE, *pictures, cwd=experiment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(before.strip())
    assert_joined(experiment)
    for clsname, other in (("cup", "tile"), ("tile", "cup")):
        assert (experiment / clsname / "result/report.html").is_file()
        assert (experiment / clsname / "log/eval.log").is_file()
        for kind, ending in (("result/vis", "*.jpg"), ("features", "*.npy")):
            files = [path.relative_to(experiment / clsname) for path in (experiment / clsname / kind).rglob(ending)]
            assert files, (clsname, kind)
            assert not any(other in file.parts for file in files)


def test_a_failure_names_the_class_in_one_line_and_the_exit_code_is_2(path: Path):
    (path.parent / "data/tile/train/good/003.png").write_bytes(b"no image")
    failed = tiny.run_tool(path, *SEPARATE)
    assert failed.code == 2
    assert "class tile, 2 of 2" in failed.stdout
    assert failed.stderr.startswith("error: class tile: ")
    assert "003.png" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert not (path.parent / "result").exists()


# --- what is trained ---


def test_each_model_is_bit_for_bit_the_one_trained_by_itself(path: Path, run):
    run(path)
    folders = ("saver.save_dir=alone", "saver.log_dir=alone", "evaluator.save_dir=alone")
    tiny.train(path, "dataset.class_name=tile", *folders)
    assert_equal(weights(path.parent / "tile/checkpoints"), weights(path.parent / "alone"))
    assert read_metrics(path.parent / "tile/result") == read_metrics(path.parent / "alone")


def test_finished_classes_are_left_as_they_are_and_the_others_go_on(path: Path, run, capsys):
    folder = path.parent
    image = folder / "data/tile/train/good/003.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^class tile: "):
        run(path)
    checkpoint = (folder / "cup/checkpoints/ckpt.pth.tar").read_bytes()
    image.write_bytes(content)
    capsys.readouterr()
    run(path)
    assert capsys.readouterr().out.count("nothing left to train") == 1
    assert (folder / "cup/checkpoints/ckpt.pth.tar").read_bytes() == checkpoint
    assert_joined(folder)


def test_a_class_stopped_before_its_last_epoch_ends_as_if_it_had_not(path: Path, run, tmp_path_factory):
    run(path, "dataset.class_name=cup", "trainer.max_epoch=1")
    run(path, "trainer.max_epoch=2")
    through = tiny.make(tmp_path_factory.mktemp("through"))
    run(through, "trainer.max_epoch=2")
    for clsname in ("cup", "tile"):
        assert_equal(*(weights(folder / clsname / "checkpoints") for folder in (path.parent, through.parent)))
    assert read_metrics(path.parent / "result") == read_metrics(through.parent / "result")


def test_overwrite_starts_every_class_anew(path: Path, run, capsys):
    run(path)
    first = weights(path.parent / "tile/checkpoints")
    run(path, "random_seed=8", overwrite=True)
    assert "resumed" not in capsys.readouterr().out
    assert any(not torch.equal(tensor, first[name]) for name, tensor in weights(path.parent / "tile/checkpoints").items())


def test_the_joined_table_takes_the_place_of_everything_an_earlier_evaluation_wrote(path: Path, run):
    tiny.train(path)
    tiny.evaluate(path)
    run(path)
    assert sorted(file.name for file in (path.parent / "result").iterdir()) == ["metrics.json", "table.txt"]
    assert_joined(path.parent)


def test_class_name_works_on_that_class_alone_and_joins_nothing(path: Path, run):
    run(path, "dataset.class_name=tile")
    run(path, "dataset.class_name=tile", evaluate=True)
    assert (path.parent / "tile/result/report.html").is_file()
    assert not (path.parent / "cup").exists()
    assert not (path.parent / "result").exists()


# --- what cannot be: one line before anything is trained ---


@pytest.mark.parametrize("key", ["saver.save_dir", "saver.log_dir", "saver.load_path", "evaluator.save_dir"])
@pytest.mark.parametrize("value", ["/tmp/everywhere", "../everywhere"])
def test_a_path_that_all_classes_would_share_is_refused(path: Path, run, key: str, value: str):
    with pytest.raises(UserError, match=f"^{re.escape(key)} .*everywhere would be shared by all classes"):
        run(path, f"{key}={value}")
    assert not (path.parent / "cup").exists()


def test_a_class_without_test_images_is_named(path: Path, run):
    file = path.parent / "data/test.json"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"tile"' not in line))
    with pytest.raises(UserError, match=r"test\.json has no image of the class 'tile'"):
        run(path)
    assert not (path.parent / "cup").exists()


def test_a_class_name_that_is_not_in_the_training_list_is_named(path: Path, run):
    with pytest.raises(UserError, match=r"train\.json has no image of the class 'mug'"):
        run(path, "dataset.class_name=mug")


def test_a_class_that_cannot_be_a_folder_is_named(path: Path, run):
    for name in ("train", "test"):
        file = path.parent / f"data/{name}.json"
        file.write_text(file.read_text().replace('"clsname": "tile"', '"clsname": "../tile"'))
    with pytest.raises(UserError, match=r"'\.\./tile' cannot be a class"):
        run(path)


def test_it_is_for_custom_data_sets(path: Path):
    with pytest.raises(UserError, match=r"dataset\.separate is for data sets of type custom, not cifar10"):
        load_config(path, ["dataset.separate=True", "dataset.type=cifar10", "dataset.root_dir=.", "dataset.normals=[1]"])
