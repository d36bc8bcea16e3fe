"""The fault suite, see test_faults.py: images that vanish or are corrupt, and what `dataset.on_bad_image` makes of them."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datasets.build import build_dataloader, build_dataset
from datasets.cached import FeatureDataset
from tests.helpers import tiny
from tests.helpers import vis_runs as vis
from tests.helpers.comparing import assert_same
from tests.helpers.feature_runs import Run, touch
from tests.helpers.started_runs import RUN, result, start
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.process.distributed import Process
from utils.runs.vis_decoder import draw_check_images

SKIP = "dataset.on_bad_image=skip"
NO_CACHE = "dataset.feature_cache.mode=off"
TRAIN = [f"{clsname}/train/good/{index:03d}.png" for clsname in ("cup", "tile") for index in range(5)]  # as listed
DAMAGES: dict[str, Callable[[Path], None]] = {
    "vanishes": Path.unlink,
    "is corrupt": lambda file: file.write_bytes(b"no image"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.make(tmp_path)


@pytest.fixture
def caplogged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Its `messages` are the lines of the log."""
    caplog.set_level("INFO", "uniad")
    return caplog


def damage(path: Path, **names: str) -> None:
    """Damage images in both ways: each of `vanishes` and `is_corrupt` is a name, or several with spaces between them."""
    for kind, of_kind in names.items():
        for name in of_kind.split():
            DAMAGES[kind.replace("_", " ")](path.parent / "data" / name)


def warnings(lines: list[str], name: str) -> int:
    """How many lines say why the image is skipped."""
    return sum(line.startswith("skipped: ") and name in line for line in lines)


# --- in the middle of a run ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    path = tiny.make(tmp_path_factory.mktemp("whole"))
    tiny.train(path, *RUN)
    return result(path)


@pytest.mark.parametrize("kind", ["vanishes", "is corrupt"])
def test_an_image_that_goes_bad_in_mid_epoch_stops_the_run_with_its_name_and_mended_it_goes_on(
    path: Path, whole: dict, kind: str
) -> None:
    file = path.parent / "data" / TRAIN[3]
    good = file.read_bytes()
    with start(path, *RUN, NO_CACHE, "saver.save_freq_step=1", "dataset.workers=1") as (run,):
        run.wait_for("epoch 2/4  step 2/10")
        DAMAGES[kind](file)
        assert run.code() == 2
        line = run.log_text().splitlines()[-1]
    assert line.startswith("error: ")
    assert TRAIN[3] in line
    assert "train.json" in line
    content = result(path)
    assert 12 <= 10 * content["epoch"] + content["running_epoch"]["images"] < 40
    file.write_bytes(good)
    tiny.train(path, *RUN)
    assert_same(result(path), whole)


def test_images_that_go_bad_in_mid_epoch_are_skipped_counted_and_named_and_the_run_ends_well(path: Path) -> None:
    with start(path, *RUN, SKIP, NO_CACHE, "dataset.workers=1") as (run,):
        run.wait_for("epoch 1/4  step 2/10")
        damage(path, vanishes=f"{TRAIN[3]} tile/test/hole/000.png", is_corrupt=TRAIN[4])
        assert run.code() == 0, run.log_text()
        lines = run.log_text().splitlines()
    assert [warnings(lines, name) for name in (TRAIN[3], TRAIN[4], "tile/test/hole/000.png")] == [1, 1, 1]
    assert f"epoch 4/4: 2 images were skipped: {TRAIN[3]}, {TRAIN[4]}" in lines
    assert lines.count("evaluation: 1 image was skipped: tile/test/hole/000.png") == 2  # of the epochs 2 and 4
    assert len(read_scores(path)) == 8


def read_scores(path: Path, folder: str = "result") -> list[dict[str, str]]:
    with open(path.parent / folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- what is read in their place ---


def order_of_reading(path: Path, workers: int, processes: int) -> tuple[list[str], set[str]]:
    """The names of the training images of an epoch, as all processes together take them, and of those that they skipped."""
    cfg = to_plain(load_config(path, [SKIP, f"dataset.workers={workers}", "dataset.batch_size=1"]).dataset)
    shares, skipped = [], set()
    for rank in range(processes):
        loader = build_dataloader(build_dataset(cfg, "train"), cfg, "train", rank, processes)
        loader.sampler.set_epoch(1)
        shares.append([name for batch in loader for name in batch["filename"]])
        skipped.update(loader.skipped)
    return [name for names in zip(*shares, strict=True) for name in names], skipped


def test_in_training_the_next_one_that_can_be_read_is_taken_whatever_the_workers_and_processes(path: Path, caplogged) -> None:
    expected, _ = order_of_reading(path, workers=0, processes=1)
    assert sorted(expected) == TRAIN
    damage(path, is_corrupt=TRAIN[3], vanishes=f"{TRAIN[4]} {TRAIN[9]}")
    instead = {TRAIN[3]: TRAIN[5], TRAIN[4]: TRAIN[5], TRAIN[9]: TRAIN[0]}
    expected = [instead.get(name, name) for name in expected]
    for workers, processes in ((0, 1), (2, 1), (0, 2)):
        caplogged.clear()
        assert order_of_reading(path, workers, processes) == (expected, {TRAIN[3], TRAIN[4], TRAIN[9]})
        if processes == 1:
            assert [warnings(caplogged.messages, name) for name in (TRAIN[3], TRAIN[4], TRAIN[9])] == [1, 1, 1]


def test_a_bad_or_missing_mask_is_treated_as_a_bad_image(path: Path, caplogged) -> None:
    tiny.train(path)
    damage(path, vanishes="cup/ground_truth/hole/000_mask.png", is_corrupt="cup/ground_truth/hole/001_mask.png")
    with pytest.raises(UserError, match=r"no file cup/ground_truth/hole/000_mask\.png"):
        tiny.evaluate(path)
    tiny.evaluate(path, SKIP)
    assert "evaluation: 2 images were skipped: cup/test/hole/000.png, cup/test/hole/001.png" in caplogged.messages
    assert len(read_scores(path)) == 7


def test_an_evaluation_without_them_says_what_it_says_of_a_list_without_them(path: Path) -> None:
    tiny.train(path)
    bad = ("cup/test/good/001.png", "tile/test/hole/001.png")  # the second is read by the second process
    lines = (path.parent / "data/test.json").read_text().splitlines()
    (path.parent / "data/short.json").write_text("\n".join(line for line in lines if json.loads(line)["filename"] not in bad))
    one = ("dataset.batch_size=1", "evaluator.vis_compound={save_dir: vis}")
    tiny.evaluate(path, *one, "dataset.test.meta_file=data/short.json", "evaluator.save_dir=short")
    damage(path, vanishes=bad[0], is_corrupt=bad[1])
    tiny.evaluate(path, *one, SKIP, "evaluator.save_dir=skipped")
    with start(path, "-e", *one, SKIP, "evaluator.save_dir=by_two", processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0]
        lines = ranks[0].log_text().splitlines()
    assert f"evaluation: 2 images were skipped: {', '.join(bad)}" in lines
    assert any(line.startswith("vis_compound: pictures of 7 images") for line in lines)
    for folder in ("skipped", "by_two"):
        for name in ("metrics.json", "table.txt", "scores.csv", "intervals.json"):
            assert (path.parent / folder / name).read_text() == (path.parent / "short" / name).read_text(), (folder, name)


def test_where_no_image_can_be_read_there_is_an_error(path: Path) -> None:
    tiny.train(path)
    test = [json.loads(line)["filename"] for line in (path.parent / "data/test.json").read_text().splitlines()]
    damage(path, is_corrupt=" ".join(test))
    for cache in ("auto", "off"):
        with pytest.raises(UserError, match=r"no image .*can be read, of 9"):
            tiny.train(path, SKIP, f"dataset.feature_cache.mode={cache}", overwrite=True)
    with pytest.raises(UserError, match="no image of the test set can be read, of 9"):
        tiny.evaluate(path, SKIP)
    damage(path, is_corrupt=" ".join(TRAIN))
    with pytest.raises(UserError, match=r"no image can be read, of 10; the last one: .*\.png"):
        tiny.train(path, SKIP, NO_CACHE, overwrite=True)
    damage(path, vanishes=" ".join(TRAIN))
    with pytest.raises(UserError, match=rf"no file {TRAIN[0]}"):  # at once
        tiny.train(path, SKIP, overwrite=True)


def test_a_class_of_which_no_image_can_be_read_has_no_row(path: Path, caplogged) -> None:
    damage(path, is_corrupt=" ".join(f"tile/test/{name}.png" for name in ("good/000", "good/001", "hole/000", "hole/001")))
    tiny.train(path, SKIP, "evaluator.key_metric=tile_pixel_auc")
    assert "evaluator.key_metric tile_pixel_auc has no number, so no checkpoint is the best" in caplogged.messages
    metrics = json.loads((path.parent / "result/metrics.json").read_text())
    assert {key.split("_")[0] for key in metrics} == {"cup", "mean"}


# --- the feature cache ---


def test_a_run_with_a_feature_cache_skips_the_same_images_with_the_same_result(path: Path, caplogged) -> None:
    damage(path, is_corrupt=f"{TRAIN[3]} cup/test/good/000.png", vanishes=TRAIN[4])
    contents = []
    for options in ((NO_CACHE,), (), ()):  # the second builds the cache, the third finds it
        caplogged.clear()
        tiny.train(path, SKIP, "dataset.batch_size=1", "trainer.max_epoch=2", *options, overwrite=True)
        contents.append(result(path))
        assert [warnings(caplogged.messages, name) for name in (TRAIN[3], TRAIN[4], "cup/test/good/000.png")] == [1, 1, 1]
        assert f"epoch 2/2: 2 images were skipped: {TRAIN[3]}, {TRAIN[4]}" in caplogged.messages
        assert caplogged.messages.count("evaluation: 1 image was skipped: cup/test/good/000.png") == 2
        assert len(read_scores(path)) == 8
    assert sum("read from" in line for line in caplogged.messages) == 2
    assert_same(contents[2], contents[1])
    without, with_cache = ([epoch["loss"] for epoch in content["history"]] for content in contents[:2])
    assert with_cache == pytest.approx(without, rel=1e-4)


def test_an_image_that_is_mended_is_in_the_cache_of_the_next_run(path: Path) -> None:
    file = path.parent / "data" / TRAIN[3]
    good, status = file.read_bytes(), file.stat()
    file.write_bytes(bytes(len(good)))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for computed in (9, 0):
        run = Run(path, SKIP)
        data = run.open()
        assert run.computed == computed
        assert isinstance(data, FeatureDataset)
        with pytest.raises(UserError, match=TRAIN[3]):
            data[3]
    with pytest.raises(UserError, match=rf"^{TRAIN[3]} .* is not an image"):
        Run(path).open()  # it does not stop for less than without the cache
    file.write_bytes(good)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had only not been readable
    with pytest.raises(UserError, match=f"{TRAIN[3]} could not be read when features were computed"):
        data[3]
    touch(file)  # a file that was mended has another time, and so another cache
    run = Run(path, SKIP)
    data = run.open()
    assert run.computed == 10
    assert torch.equal(run.features(data), run.features(run.images("train")))


def test_images_that_change_while_the_cache_is_built_make_it_build_once_more(path: Path, caplogged) -> None:
    run = Run(path, SKIP)

    def change(*_) -> None:
        if run.computed == 4:
            damage(path, vanishes=TRAIN[8])
        if always:
            touch(path.parent / "data" / TRAIN[0])

    run.network.neck.register_forward_hook(change)
    always = False
    data = run.open()
    assert run.computed == 9 + 9
    assert isinstance(data, FeatureDataset)
    assert "feature cache: images were changed while their features were computed, it is built once more" in caplogged.messages
    assert len(run.folders()) == 1
    always = True
    touch(path.parent / "data" / TRAIN[0])
    with pytest.raises(UserError, match="images were changed while their features were computed"):
        run.open()


# --- pictures ---


def test_a_vis_decoder_draws_the_others(tmp_path: Path, caplogged) -> None:
    path = vis.make(tmp_path)
    damage(path, is_corrupt="cup/train/good/001.png cup/test/good/000.png", vanishes="cup/test/hole/000.png")
    vis.train(path, "cup", SKIP, "trainer.max_epoch=1")
    assert (path.parent / "cup/vis/epoch_0001.jpg").is_file()
    caplogged.clear()
    draw_check_images(vis.load(path, "cup", SKIP, "visualization.vis_dir=drawn"), Process())
    drawn = path.parent / "cup/drawn"
    assert vis.files(drawn) == {"good/001.jpg", "hole/001.jpg", "hole/002.jpg"}
    assert [warnings(caplogged.messages, name) for name in ("cup/test/good/000.png", "cup/test/hole/000.png")] == [1, 1]
    assert caplogged.messages[-1] == f"pictures of 3 images in {drawn}"
