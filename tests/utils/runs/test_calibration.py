"""Calibration: a threshold that keeps its promise of false alarms, from normal images that training has not seen."""

import csv
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from datasets.build import build_dataset
from datasets.custom import choose_held_out
from datasets.lists import read_list, write_list
from tests.helpers import tiny
from tools import calibrate as tool
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.calibration import (
    Calibration,
    Threshold,
    binomial_interval,
    calibrate,
    calibration_of,
    find_threshold,
    images_needed,
    rates_at,
    read_calibration,
)
from utils.evaluation.region_rates import RegionRates
from utils.evaluation.regions import find_regions, region_level
from utils.predict.predictor import Predictor
from utils.report.result_folder import Scores
from utils.runs.calibrate import warn_of_contradictions

# --- thresholds ---


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3), (0.5, 1)])
def test_the_threshold_is_the_conformal_order_statistic(rate: float, needed: int) -> None:
    assert images_needed(rate) == needed
    for n in range(1, 120):
        scores = np.random.default_rng(n).permutation(n) + 1.0  # the k-th smallest is k
        k = math.ceil((n + 1) * (1 - Fraction(str(rate))))
        assert (k <= n) == (n >= needed)
        threshold = find_threshold(scores, scores, rate)
        assert threshold.threshold == min(k, n)
        assert threshold.images == n


def test_the_false_alarm_rate_is_kept_whatever_the_distribution() -> None:
    rng, rate, n = np.random.default_rng(0), 0.1, 50
    for draw in (rng.standard_normal, rng.standard_cauchy, lambda size: rng.exponential(size=size) ** 3):
        seen = []
        for _ in range(400):
            scores = draw(n)
            threshold = find_threshold(scores, scores, rate).threshold
            seen.append(np.mean(draw(400) > threshold))
        assert np.mean(seen) == pytest.approx(1 - math.ceil(51 * 0.9) / 51, abs=0.01)
        assert np.mean(seen) <= rate


@pytest.mark.parametrize("n", [5, 19, 50, 200])
def test_the_interval_holds_the_true_rate_95_times_in_100(n: int) -> None:
    rng = np.random.default_rng(n)
    inside = []
    for _ in range(2000):
        threshold = find_threshold(scores := rng.random(n), scores, 0.05)  # uniform scores: above t lies a share of 1 - t
        low, high = threshold.false_alarm_rate
        inside.append(low <= 1 - threshold.threshold <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (3, 41), (1, 1), (0, 1), (250, 1000)])
def test_rates_on_the_test_set_have_exact_intervals(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(0.95, method="exact")
    assert binomial_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_each_class_has_a_threshold_and_all_have_one() -> None:
    pooled, classes = calibrate(scores := np.array([1.0, 10.0, 2.0, 20.0, 3.0]), scores, ["b", "a", "b", "a", "b"], 0.4)
    assert pooled.threshold == 10
    assert {name: (found.threshold, found.images) for name, found in classes.items()} == {"a": (20, 2), "b": (3, 3)}
    assert list(classes) == ["a", "b"]


def test_a_score_at_the_threshold_is_no_alarm() -> None:
    rates = rates_at(2.0, np.array([1.0, 2.0, 3.0, 2.0, 2.5, 9.0]), np.array([0, 0, 0, 1, 1, 1]))
    assert (rates.good, rates.false_alarms, rates.defective, rates.found) == (3, 1, 3, 2)


# --- held-out images ---


def datasets_of(path: Path, *overrides: str) -> tuple[list[str], list[str]]:
    """The names of training and of held-out images."""
    config = load_config(path, overrides)
    return tuple(build_dataset(config.dataset, split).filenames for split in ("train", "holdout"))


def test_training_leaves_a_share_of_each_class_out(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    everything, nothing = datasets_of(path)
    assert (len(everything), nothing) == (10, [])
    kept, held_out = datasets_of(path, "dataset.holdout=0.4")
    assert sorted(kept + held_out) == sorted(everything)
    assert [name.split("/")[0] for name in held_out] == ["cup", "cup", "tile", "tile"]
    assert datasets_of(path, "dataset.train.holdout=0.4") == (kept, held_out)
    only_cup = datasets_of(path, "dataset.holdout=0.4", "dataset.class_name=cup")
    assert only_cup == tuple([name for name in names if name.startswith("cup")] for names in (kept, held_out))


def test_the_held_out_images_are_always_the_same(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    _, held_out = datasets_of(path, "dataset.holdout=0.4")
    assert datasets_of(path, "dataset.holdout=0.4", "random_seed=8")[1] == held_out
    records = read_list(tmp_path / "data/train.json")
    write_list(records[::-1], tmp_path / "data/train.json")
    assert datasets_of(path, "dataset.holdout=0.4")[1] == held_out[::-1]
    assert set(datasets_of(path, "dataset.holdout=0.2")[1]) < set(held_out)
    kept, most = datasets_of(path, "dataset.holdout=0.9")
    assert (len(kept), len(most)) == (2, 8)


def test_a_defective_image_in_the_list_is_not_held_out(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    records = read_list(tmp_path / "data/train.json")
    for record in records[:4]:
        record["label"] = 1
    write_list(records, tmp_path / "data/train.json")
    kept, held_out = datasets_of(path, "dataset.holdout=0.9", "dataset.on_defective_train=skip")
    assert records[4]["filename"] in kept
    assert not {record["filename"] for record in records[:4]} & {*kept, *held_out}
    assert {name.split("/")[0] for name in held_out} == {"tile"}


def test_near_duplicates_are_held_out_together() -> None:
    records = [{"filename": f"{i}.png", "label": 0, "clsname": "nut", "group": f"{i // 3}"} for i in range(30)]
    for share in (0.1, 0.3, 0.9):
        chosen = choose_held_out(records, share)
        assert len(chosen) == round(share * 30)
        assert len({name for i in range(30) if (name := f"{i // 3}") and f"{i}.png" in chosen}) == len(chosen) // 3


@pytest.mark.parametrize(("alarms", "contradicts"), [(8, True), (1, False)])
def test_false_alarms_outside_of_the_stated_interval_are_said(caplog, alarms: int, contradicts: bool) -> None:
    threshold = Threshold(1.0, 30, (0.002, 0.285))
    calibration = Calibration("max", 0.1, "ckpt.pth.tar", "", 1, "", threshold, {"nut": threshold})
    scores = np.array([2.0] * alarms + [0.5] * (10 - alarms))
    test = Scores(["a.png"] * 10, np.array(["nut"] * 10), np.zeros(10, int), {"max": scores})
    with caplog.at_level("WARNING", "uniad"):
        warn_of_contradictions(calibration, test)
    assert ("nut: 8/10 = 80.0 % false alarms on test/good contradict the stated 0.2–28.5 %" in caplog.text) is contradicts


def test_evaluation_knows_no_holdout(tmp_path: Path) -> None:
    path = tiny.make(tmp_path)
    tests = (build_dataset(load_config(path, [f"dataset.holdout={share}"]).dataset, "test").filenames for share in (0, 0.5))
    assert next(tests) == next(tests)


def test_data_sets_without_a_list_have_no_holdout() -> None:
    with pytest.raises(UserError, match=r"dataset\.holdout"):
        build_dataset(
            {"type": "cifar10", "holdout": 0.1, "input_size": [8, 8], "pixel_mean": [0] * 3, "pixel_std": [1] * 3}, "train"
        )


# --- the tool ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The configuration of a network that was trained with dataset.holdout 0.4 and evaluated."""
    path = tiny.make(tmp_path_factory.mktemp("trained"))
    tiny.train(path, "dataset.holdout=0.4")
    tiny.evaluate(path)
    return path


@pytest.fixture
def run(trained: Path, monkeypatch, capsys):
    """The tool in this process; returns what it prints."""

    def call(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["calibrate.py", "--config", str(trained), *map(str, args)])
        capsys.readouterr()
        tool.main()
        return capsys.readouterr().out

    return call


def rows(table: str) -> dict[str, list[str]]:
    lines = [line.split("  ") for line in table.splitlines()]
    return {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}


def test_thresholds_come_from_exactly_the_held_out_images(run, trained: Path, checkpoint: Path) -> None:
    run("--false_alarm_rate", 0.4)
    calibration = read_calibration(checkpoint.with_name("calibration.json"))
    _, held_out = datasets_of(trained, "dataset.holdout=0.4")
    scores, _ = Predictor.from_checkpoint(checkpoint)([trained.parent / "data" / name for name in held_out])
    pooled, classes = calibrate(np.array(scores), np.array(scores), [name.split("/")[0] for name in held_out], 0.4)
    assert calibration.pooled.images == 4
    assert calibration.pooled.threshold == pytest.approx(pooled.threshold, rel=1e-5)
    assert calibration.pooled.false_alarm_rate == pooled.false_alarm_rate
    for name, threshold in classes.items():
        assert calibration.classes[name].threshold == pytest.approx(threshold.threshold, rel=1e-5)
    assert (calibration.score, calibration.epoch, calibration.false_alarm_rate) == ("max", 1, 0.4)
    assert Predictor.from_checkpoint(checkpoint).engine.calibration == calibration
    content = json.loads(checkpoint.with_name("calibration.json").read_text())
    assert Calibration.from_dict(content) == calibration


def test_the_table_says_what_the_thresholds_do_to_the_test_set(run, trained: Path, checkpoint: Path) -> None:
    output = rows(run("--false_alarm_rate", 0.4))
    calibration = read_calibration(checkpoint.with_name("calibration.json"))
    predictor = Predictor.from_checkpoint(checkpoint)
    records = read_list(trained.parent / "data/test.json")
    scores = np.array(predictor([trained.parent / "data" / record["filename"] for record in records])[0])
    for name in ("cup", "tile", "all classes"):
        chosen = np.array([name in (record["clsname"], "all classes") for record in records])
        labels = np.array([record["label"] for record in records])[chosen]
        threshold = calibration.of(None if name == "all classes" else name).threshold
        above = scores[chosen] > threshold
        alarms, good = int((above & (labels == 0)).sum()), int((labels == 0).sum())
        found, defective = int((above & (labels == 1)).sum()), int((labels == 1).sum())
        low, high = binomial_interval(alarms, good)
        assert output[name][0] == f"{threshold:.5g}"
        assert output[name][4:] == [
            f"{alarms}/{good} = {100 * alarms / good:.1f} %",
            f"{100 * low:.1f}–{100 * high:.1f} %",
            f"{found}/{defective} = {100 * found / defective:.1f} %",
        ]


def test_the_pixel_threshold_is_that_of_the_images_largest_regions(run, trained: Path, checkpoint: Path) -> None:
    run("--false_alarm_rate", 0.4, "--min_area", 1)
    calibration = read_calibration(checkpoint.with_name("calibration.json"))
    _, held_out = datasets_of(trained, "dataset.holdout=0.4")
    scores, maps = Predictor.from_checkpoint(checkpoint)([trained.parent / "data" / name for name in held_out])
    levels = sorted(region_level(anomaly_map, 0.01) for anomaly_map in maps)
    assert calibration.min_area == 0.01
    assert calibration.pooled.pixel_threshold == pytest.approx(levels[2], rel=1e-5)  # the third of four
    assert calibration.pooled.scores == pytest.approx(sorted(scores), rel=1e-5)
    assert min(map(np.min, maps)) < calibration.typical < calibration.pooled.pixel_threshold


@pytest.mark.parametrize("score", ["mean", "std"])
def test_the_calibrated_score_is_the_one_that_everything_uses(run, trained: Path, checkpoint: Path, score: str) -> None:
    tiny.evaluate(trained)
    assert f"score {score}" in run("--score", score)
    tiny.evaluate(trained)
    page = (trained.parent / "result/report.html").read_text()
    assert f"Horizontal axis: the image score <b>{score}</b>" in page
    assert Predictor.from_checkpoint(checkpoint).engine.score == score
    assert f"score {score}" not in run()  # without the option the configuration's
    assert Predictor.from_checkpoint(checkpoint).engine.score == "max"


def test_a_score_that_evaluations_do_not_write_is_refused(run) -> None:
    with pytest.raises(UserError, match=r"--score top: evaluator.metrics has the image scores mean, std, max"):
        run("--score", "top")


def test_without_an_evaluation_of_the_checkpoint_it_says_what_gives_the_rates(run, checkpoint: Path, tmp_path: Path) -> None:
    output = run(f"evaluator.save_dir={tmp_path}")
    assert "evaluate this checkpoint with -e" in output
    assert "defective found" not in output
    copied = tmp_path / "copy.pth.tar"
    copied.write_bytes(checkpoint.read_bytes())
    assert "evaluate this checkpoint with -e" in run("--checkpoint", copied)
    assert (tmp_path / "calibration.json").is_file()


def test_too_few_images_are_warned_about(run, caplog) -> None:
    run("--false_alarm_rate", 0.05)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 3
    for name, count, warning in zip(("cup", "tile", "all classes"), (2, 2, 4), warnings, strict=True):
        assert warning.startswith(f"{name}: {count} images are too few")
        assert "19 are needed: more photographs, or a training with a larger dataset.holdout" in warning
    caplog.clear()
    run("--false_alarm_rate", 0.4)
    assert not [record for record in caplog.records if record.getMessage().startswith("all classes")]


def test_a_list_of_other_normal_images_serves_as_well(run, trained: Path, checkpoint: Path, tmp_path: Path) -> None:
    records = read_list(trained.parent / "data/test.json")
    good = [record for record in records if record["label"] == 0]
    write_list(good, tmp_path / "good.json")
    run("--meta_file", tmp_path / "good.json", "--false_alarm_rate", 0.4)
    calibration = read_calibration(checkpoint.with_name("calibration.json"))
    assert (calibration.pooled.images, calibration.images) == (4, f"normal images of {tmp_path / 'good.json'}")

    write_list(records, tmp_path / "all.json")
    with pytest.raises(UserError, match=r"all\.json: .*/hole/000\.png is defective"):
        run("--meta_file", tmp_path / "all.json")
    kept, held_out = datasets_of(trained, "dataset.holdout=0.4")
    write_list([{"filename": name, "label": 0} for name in held_out], tmp_path / "held_out.json")
    run("--meta_file", tmp_path / "held_out.json")
    write_list([{"filename": name, "label": 0} for name in (*held_out, kept[0])], tmp_path / "seen.json")
    with pytest.raises(UserError, match=rf"seen\.json: {kept[0]} is a training image"):
        run("--meta_file", tmp_path / "seen.json")


def altered(checkpoint: Path, path: Path, holdout: float | None) -> Path:
    """The checkpoint with another holdout in its configuration; None: without configuration, like a published one."""
    content = torch.load(checkpoint, weights_only=True)
    if holdout is None:
        del content["config"]
    else:
        content["config"]["dataset"]["holdout"] = holdout
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("holdout", "problem"), [(0, "on all normal images"), (None, "does not say"), (0.01, "less than an image of each class")]
)
def test_images_that_training_may_have_seen_are_refused(run, checkpoint: Path, tmp_path: Path, holdout, problem: str) -> None:
    other = altered(checkpoint, tmp_path / "other.pth.tar", holdout)
    with pytest.raises(UserError, match=f"{problem}.*--meta_file"):
        run("--checkpoint", other)
    assert not (tmp_path / "calibration.json").exists()


def test_an_image_that_cannot_be_read_is_named(run, trained: Path, tmp_path: Path) -> None:
    path = trained.parent / "data/cup/test/good/text.png"
    path.write_text("no image")
    write_list([{"filename": "cup/test/good/text.png", "label": 0}], tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"cup/test/good/text\.png: .*not an image"):
        run("--meta_file", tmp_path / "bad.json")


def test_of_several_classes_it_says_how_to_choose_one(run) -> None:
    assert "unless a class is named: --class_name" in run()


def test_data_sets_that_cannot_be_calibrated_are_said(run) -> None:
    with pytest.raises(UserError, match="type custom"):
        run("dataset.type=cifar10", "dataset.root_dir=data", "dataset.normals=[1]")


def test_the_tool_ends_with_a_line_and_runs_from_anywhere(trained: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = altered(checkpoint, tmp_path / "seen.pth.tar", 0)
    arguments = tiny.command(trained, "--checkpoint", str(other), script=tiny.ROOT / "tools/calibrate.py")
    outcome = subprocess.run(arguments, cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")


# --- who uses it ---


def test_a_calibration_of_another_checkpoint_is_noticed(run, checkpoint: Path, tmp_path: Path, caplog) -> None:
    run()
    assert calibration_of(checkpoint) is not None
    other = altered(checkpoint, tmp_path / "ckpt.pth.tar", 0)
    (tmp_path / "calibration.json").write_bytes(checkpoint.with_name("calibration.json").read_bytes())
    assert calibration_of(other) is None
    assert "another checkpoint" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pooled": 1, "classes": {}}', "{torn"])
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json: not a calibration"):
        read_calibration(tmp_path / "calibration.json")


def test_without_masks_it_is_not_known_how_precise_regions_are() -> None:
    assert RegionRates(good=4, good_with_region=1, region_pixels=9).cells()[2:] == ["–", "–", "–"]
    marked = RegionRates(good=4, good_with_region=1, defects=1, region_pixels=9, defect_pixels=5, common_pixels=3)
    assert marked.cells()[2:] == ["0/1 = 0.0 %", "33.3 %", "60.0 %"]


def test_an_evaluation_says_what_pixel_thresholds_find(run, trained: Path, checkpoint: Path) -> None:
    run("--false_alarm_rate", 0.4)
    tiny.evaluate(trained)
    folder, calibration = trained.parent / "result", read_calibration(checkpoint.with_name("calibration.json"))
    rates = json.loads((folder / "region_rates.json").read_text())["classes"]
    with open(folder / "regions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {name: dict.fromkeys(rates[name], 0) for name in rates}
    for record in read_list(trained.parent / "data/test.json"):
        name = record["clsname"]
        _, anomaly_map = Predictor.from_checkpoint(checkpoint)(trained.parent / "data" / record["filename"])
        numbers, regions = find_regions(anomaly_map, calibration.of(name).pixel_threshold, calibration.min_area)
        mask = np.zeros(numbers.shape, np.uint8)
        if record["label"]:
            mask = (np.asarray(Image.open(trained.parent / "data" / record["maskname"]).convert("L")) > 0).astype(np.uint8)
        pieces, labels = cv2.connectedComponents(mask)
        inside = (mask > 0) & (numbers > 0)
        counts = {
            "good": record["label"] == 0,
            "good_with_region": record["label"] == 0 and bool(regions),
            "defects": pieces - 1,
            "defects_found": len(set(labels[inside].tolist())),
            "region_pixels": (numbers > 0).sum(),
            "defect_pixels": mask.sum(),
            "common_pixels": inside.sum(),
        }
        for key, value in counts.items():
            found[name][key] += int(value)
        mine = [row for row in rows if row["filename"] == record["filename"]]
        assert [float(row["percent"]) for row in mine] == pytest.approx([100 * region.share for region in regions], rel=1e-4)
        assert [int(row["on_defect"]) for row in mine] == [int(inside[numbers == n].any()) for n in range(1, len(mine) + 1)]
    assert found == rates
    assert sum(found["defects"] for found in rates.values()) == 5
    page = (folder / "report.html").read_text()
    for name, counts in rates.items():
        assert f"{counts['defects_found']}/{counts['defects']} = " in page, name


def test_the_report_marks_the_thresholds(run, trained: Path, checkpoint: Path) -> None:
    output = run("--false_alarm_rate", 0.4)
    page = (trained.parent / "result/report.html").read_text()
    assert "report.html" in output
    assert "a false-alarm rate of 40 %" in page
    table = rows(output)
    for name, defective in (("cup", 3), ("tile", 2)):
        alarms, found = (int(table[name][column].split("/")[0]) for column in (4, 6))
        assert f": {alarms} of 2 good, {found} of {defective} defective." in page
    checkpoint.with_name("calibration.json").unlink()
    tiny.evaluate(trained)
    assert "false-alarm rate" not in (trained.parent / "result/report.html").read_text()
