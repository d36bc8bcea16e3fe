"""tools/predict.py: every image gets one line and one picture, for any name, and also after a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.lists import IMAGE_EXTENSIONS
from tests.helpers import tiny
from tests.helpers.hostile_images import hostile_images
from tests.helpers.locks import held_by_another
from tests.helpers.result_folders import Page
from tools import predict
from utils.errors import UserError
from utils.evaluation.calibration import Calibration, Threshold, file_hash, rates_at, save_calibration
from utils.evaluation.decisions import Rule
from utils.evaluation.regions import find_regions
from utils.predict import inputs
from utils.predict.batches import Result
from utils.predict.inputs import find_inputs
from utils.predict.outputs import Output
from utils.predict.report import write_prediction_report
from utils.process.checkpoint import load_checkpoint

PREDICT = tiny.ROOT / "tools" / "predict.py"


@pytest.fixture
def image(trained: Path) -> Path:
    return trained.parent / "data/cup/test/good/000.png"


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch, capsys):
    """The tool in this process: run(input, ..., option, ...) writes tmp_path/out and returns what it prints."""

    def call(*args: object, out: Path = tmp_path / "out") -> str:
        given = ["predict.py", "--checkpoint", str(checkpoint), "--out", str(out), *map(str, args)]
        monkeypatch.setattr(sys, "argv", given)
        capsys.readouterr()
        predict.main()
        return capsys.readouterr().out

    return call


def command(checkpoint: Path, out: Path, *args: object) -> list[str]:
    return [sys.executable, str(PREDICT), "--checkpoint", str(checkpoint), "--out", str(out), *map(str, args)]


def read(out: Path, name: str = "scores.csv") -> list[dict[str, str]]:
    with open(out / name, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def files(out: Path, name: str = "scores.csv") -> list[str]:
    return [row["file"] for row in read(out, name)]


def links(folder: Path, image: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:04d}.png").symlink_to(image)
    return folder


# --- what is written ---


def test_scores_are_those_of_evaluation(trained: Path, run, tmp_path: Path) -> None:
    output = run(trained.parent / "data/cup/test", trained.parent / "data/tile/test", "--batch_size", 4)
    with open(trained.parent / "result/scores.csv", newline="") as file:
        expected = {row["filename"]: float(row["max"]) for row in csv.DictReader(file)}
    rows = read(tmp_path / "out")
    assert list(rows[0]) == ["file", "score", "decision", "ratio", "p", "regions", "largest_percent", "latency_ms"]
    assert {row["file"]: float(row["score"]) for row in rows} == pytest.approx(expected, rel=1e-5)
    assert all(row["decision"] == "" and float(row["latency_ms"]) > 0 for row in rows)
    assert f"{len(expected)} images predicted" in output


def test_each_image_has_a_picture_beside_its_heat_map(run, image: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 30)).save(tmp_path / "wide.png")
    run(image, tmp_path / "wide.png")
    folder = Path(json.loads((tmp_path / "out/predict.json").read_text())["folder"])
    sizes = {}
    for file in files(tmp_path / "out"):
        assert (folder / file).is_file()
        with Image.open(tmp_path / f"out/pictures/{file}.jpg") as picture:
            sizes[Path(file).name] = picture.size
    assert sizes == {"000.png": (128, 64 + 24), "wide.png": (2048, 10 + 24)}  # with a line of text


def test_the_colours_of_all_pictures_can_share_a_scale(run, trained: Path, image: Path, tmp_path: Path) -> None:
    run(image, "--scale", 1e6, 2e6)
    picture = np.asarray(Image.open(tmp_path / "out/pictures/000.png.jpg")).astype(int)
    left, right = picture[:64, :64], picture[:64, 64:]
    coldest = cv2.applyColorMap(np.zeros((1, 1), np.uint8), cv2.COLORMAP_JET)[0, 0, ::-1]
    assert np.abs(right - (left + coldest) / 2).mean() < 5


def test_maps_have_the_images_size(run, tmp_path: Path) -> None:
    Image.new("RGB", (70, 30)).save(tmp_path / "a.png")
    run(tmp_path / "a.png", "--save_maps", "--no_pictures")
    anomaly_map = np.load(tmp_path / "out/maps/a.png.npy")
    assert (anomaly_map.shape, anomaly_map.dtype) == ((30, 70), np.float32)
    assert not (tmp_path / "out/pictures").exists()


def test_json_lines_hold_the_same(run, image: Path, tmp_path: Path) -> None:
    run(image.parent)
    run(image.parent, "--format", "jsonl", out=tmp_path / "json")
    run(image.parent, "--format", "jsonl", out=tmp_path / "json")
    lines = [json.loads(line) for line in (tmp_path / "json/scores.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == files(tmp_path / "out")
    assert [line["score"] for line in lines] == [float(row["score"]) for row in read(tmp_path / "out")]
    assert {line["decision"] for line in lines} == {None}


# --- regions ---

GIVEN = ("--threshold", 1e-6, "--min_area", 0.1)


@pytest.fixture
def level(run, image: Path, tmp_path: Path) -> float:
    """A pixel threshold at which the test images of cup show regions."""
    run(image.parents[1], "--save_maps", out=tmp_path / "maps_of_all")
    return float(np.quantile([np.load(path) for path in (tmp_path / "maps_of_all/maps").rglob("*.npy")], 0.95))


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_regions_are_those_of_the_map_at_the_images_size(run, level: float, tmp_path: Path, image: Path, format: str) -> None:
    run(image.parents[1], *GIVEN, "--pixel_threshold", level, "--save_maps", "--format", format, "--coco")
    out = tmp_path / "out"
    scores, regions = (
        read(out, f"{name}.csv") if format == "csv" else list(map(json.loads, (out / f"{name}.jsonl").read_text().splitlines()))
        for name in ("scores", "regions")
    )
    coco = json.loads((out / "coco.json").read_text())
    assert regions
    for row in scores:
        numbers, expected = find_regions(np.load(out / f"maps/{row['file']}.npy"), level, 0.001)
        found = [region for region in regions if region["file"] == row["file"]]
        assert int(row["regions"]) == len(found) == len(expected)
        assert float(row["largest_percent"]) == pytest.approx(100 * max([region.share for region in expected], default=0))
        for number, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
            assert [int(one[key]) for key in ("region", "x", "y", "width", "height", "area")] == [
                number,
                *(other.x, other.y, other.width, other.height, other.area),
            ]
            assert [float(one[key]) for key in ("percent", "peak", "mean")] == pytest.approx(
                [100 * other.share, other.peak, other.mean]
            )
        with Image.open(out / f"masks/{row['file']}.png") as file:
            assert np.array_equal(np.asarray(file.convert("L")) > 0, numbers > 0)
        (entry,) = [entry for entry in coco["images"] if entry["file_name"] == row["file"]]
        annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] == entry["id"]]
        assert sorted(a["area"] for a in annotations) == sorted(region.area for region in expected)
        assert sorted(a["bbox"] for a in annotations) == sorted([r.x, r.y, r.width, r.height] for r in expected)
    assert len({annotation["id"] for annotation in coco["annotations"]}) == len(regions)


def test_the_regions_of_an_image_that_was_cut_off_are_found_once(run, level: float, image: Path, tmp_path: Path) -> None:
    run(image.parents[1], *GIVEN, "--pixel_threshold", level)
    whole = [(tmp_path / f"out/{name}.csv").read_bytes() for name in ("regions", "scores")]
    lines = whole[1].splitlines(keepends=True)
    (tmp_path / "out/scores.csv").write_bytes(b"".join(lines[:2]) + lines[2][:3])  # killed after the regions, within a line
    run(image.parents[1], *GIVEN, "--pixel_threshold", level)
    regions, scores = (read(tmp_path / "out", f"{name}.csv") for name in ("regions", "scores"))
    assert sorted(map(str, regions)) == sorted(map(str, csv.DictReader(whole[0].decode().splitlines())))
    assert len(scores) == len(lines) - 1


def test_outlines_are_drawn_round_regions(run, level: float, image: Path, tmp_path: Path) -> None:
    run(image, "--threshold", 1e-6, "--pixel_threshold", 1e9)
    run(image, "--threshold", 1e-6, "--pixel_threshold", 0, out=tmp_path / "whole")
    none, whole = (np.asarray(Image.open(tmp_path / f"{out}/pictures/000.png.jpg")).astype(int) for out in ("out", "whole"))
    changed = np.abs(none - whole)[:64, 64:].max(axis=2) > 60
    assert changed[0].mean() > 0.9  # the whole map is one region, so its edge is outlined
    assert not changed[8:56, 8:56].any()


def test_coco_needs_regions(run, image: Path) -> None:
    with pytest.raises(UserError, match="--coco needs regions: give --pixel_threshold"):
        run(image, "--coco")


# --- decisions ---


def decisions(out: Path) -> list[str]:
    return [row["decision"] for row in read(out)]


def test_an_image_is_defective_above_the_threshold(run, trained: Path, tmp_path: Path) -> None:
    data = trained.parent / "data/cup/test"
    run(data)
    scores = [float(row["score"]) for row in read(tmp_path / "out")]
    middle = sorted(scores)[2] + 1e-6
    output = run(data, "--threshold", middle, out=tmp_path / "decided")
    assert decisions(tmp_path / "decided") == ["defective" if score > middle else "good" for score in scores]
    assert [float(row["ratio"]) for row in read(tmp_path / "decided")] == pytest.approx([score / middle for score in scores])
    assert f"{len(scores) - 3} defective, 3 good" in output


@pytest.mark.parametrize("option", ["--threshold", "--scale"])
@pytest.mark.parametrize("number", ["nan", "inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused(run, image: Path, capsys, option: str, number: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(image, *([f"{option}={number}"] if option == "--threshold" else [option, 0, number]))
    assert ended.value.code == 2
    assert "must be a finite number" in capsys.readouterr().err


def test_two_runs_do_not_write_into_one_folder(run, image: Path, tmp_path: Path) -> None:
    with held_by_another(tmp_path / "out") as process, pytest.raises(UserError, match=f"process {process.pid} on .* writes here"):
        run(image)
    assert [path.name for path in (tmp_path / "out").iterdir()] in ([], [".lock"])
    run(image)
    assert len(files(tmp_path / "out")) == 1


def test_a_score_equal_to_the_threshold_is_good(tmp_path: Path) -> None:
    settings = dict.fromkeys(("sha256", "score", "threshold", "pixel_threshold", "min_area", "folder")) | {"format": "csv"}
    scores = {"below": 0.25, "equal": 0.5, "above": 0.75}  # which float32 holds exactly
    results = [Result(name, score=score) for name, score in scores.items()]
    rule = Rule(threshold=0.5)
    Output(tmp_path / "out", settings).add(results, [rule.decide(result.score, np.zeros((1, 1))) for result in results])
    assert decisions(tmp_path / "out") == ["good", "good", "defective"]
    rates = rates_at(0.5, np.array([*scores.values()] * 2), np.repeat([0, 1], 3))
    assert (rates.false_alarms, rates.found) == (1, 1)


def test_a_map_that_is_not_finite_gets_no_score(run, checkpoint: Path, image: Path, tmp_path: Path) -> None:
    content = load_checkpoint(checkpoint)
    content["state_dict"]["module.reconstruction.output_proj.bias"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.pth.tar")
    with pytest.raises(
        UserError, match=r"no image could be predicted: 000\.png: its anomaly map holds values that are not finite"
    ):
        run(image, "--checkpoint", tmp_path / "nan.pth.tar")
    assert files(tmp_path / "out") == []
    assert files(tmp_path / "out", "errors.csv") == ["000.png"]


@pytest.fixture
def calibrated(checkpoint: Path):
    """A function that writes a calibration in which everything is defective except the class cup."""
    path = checkpoint.with_name("calibration.json")

    def write(sha256: str) -> None:
        everything, nothing = (Threshold(value, 30, (0.0, 1.0), None, (1.0,) * 30) for value in (-1.0, 1e9))
        of = (checkpoint.name, sha256, 1, "made up")
        save_calibration(Calibration("max", 0.05, *of, everything, {"cup": nothing, "tile": everything}), checkpoint)

    yield write
    path.unlink(missing_ok=True)


def test_the_calibration_beside_the_checkpoint_decides(run, calibrated, checkpoint: Path, image: Path, tmp_path: Path) -> None:
    calibrated(file_hash(checkpoint))
    run(image)
    assert decisions(tmp_path / "out") == ["defective"]
    run(image, "--class_name", "cup", out=tmp_path / "cup")
    assert decisions(tmp_path / "cup") == ["good"]
    run(image, "--threshold", 1e9, out=tmp_path / "own")
    assert decisions(tmp_path / "own") == ["good"]
    with pytest.raises(UserError, match="no class 'lid': its classes are cup, tile"):
        run(image, "--class_name", "lid", out=tmp_path / "lid")


def test_a_calibration_of_another_checkpoint_decides_nothing(run, calibrated, image: Path, tmp_path: Path, caplog) -> None:
    calibrated("0" * 64)
    run(image)
    assert decisions(tmp_path / "out") == [""]
    assert "another checkpoint" in caplog.text
    with pytest.raises(UserError, match="tools/calibrate"):
        run(image, "--class_name", "cup", out=tmp_path / "cup")


@pytest.mark.parametrize("key", ["threshold", "false_alarm_rate"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), "nan", "1", None, True])
def test_a_threshold_that_is_no_finite_number_is_refused(run, image, calibrated, checkpoint: Path, key: str, number) -> None:
    calibrated(file_hash(checkpoint))
    path = checkpoint.with_name("calibration.json")
    content = json.loads(path.read_text())
    content["pooled"][key] = [0.0, number] if key == "false_alarm_rate" else number
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"calibration\.json: not a calibration"):
        run(image)


# --- planted links, spreadsheets, images that are too large ---


@pytest.mark.parametrize("name", ["scores.csv", "errors.csv", "predict.json"])
def test_a_link_in_place_of_a_file_is_replaced(run, image: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "out" / name).symlink_to(tmp_path / ("absent" if name == "predict.json" else "theirs"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    try:
        run(image, tmp_path / "bad.png")
    except UserError as error:
        assert name == "scores.csv"  # what it holds is not ours
        assert "not written by tools/predict.py" in str(error)  # noqa: PT017
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "absent").exists()


def test_a_score_file_that_becomes_a_link_is_not_appended_to(run, image: Path, tmp_path: Path) -> None:
    run(image)
    (tmp_path / "out/scores.csv").rename(tmp_path / "theirs")
    before = (tmp_path / "theirs").read_bytes()
    (tmp_path / "out/scores.csv").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"scores\.csv: is a link; remove it"):
        run(image)
    assert (tmp_path / "theirs").read_bytes() == before


def test_a_linked_folder_of_pictures_is_not_written_to(run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out/pictures").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="out/pictures: a link in it leads out of"):
        run(image)
    assert not any((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(A1).png", "\t=1.png", "'=1.png"])
def test_no_cell_begins_like_a_formula_and_a_second_run_knows_the_file(run, image: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in" / name)
    (tmp_path / "in/=bad.png").write_bytes(b"no image")
    run(tmp_path / "in")
    assert files(tmp_path / "out") == [f"'{name}"]
    assert files(tmp_path / "out", "errors.csv") == ["'=bad.png"]
    assert "0 images predicted, 1 were there already" in run(tmp_path / "in")


def test_an_image_that_is_too_large_costs_itself_only(run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    links(tmp_path / "in/good", image, 3)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "in/large.png")
    assert (tmp_path / "in/large.png").stat().st_size < 100_000
    assert "3 images predicted" in run(tmp_path / "in", "--batch_size", 8)
    (error,) = read(tmp_path / "out", "errors.csv")
    assert "20,000 x 20,000 pixels, more than" in error["error"]


# --- names and kinds of images ---


def test_any_name_has_a_line_and_a_picture_of_its_own(run, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = [
        *("a/same.png", "b/same.png", "a/same.bmp", "a/same.png.png", "with space.png", "Prüfling 検査.png", "line\nfeed.png"),
        *(
            "return\r.png",
            'quote".png',
            "comma,.png",
            "#1.png",
            "[x].png",
            "%s.png",
            os.fsdecode(b"\xff.png"),
            "x" * 251 + ".png",
        ),
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image.read_bytes())
    run(folder, "--batch_size", 4)
    assert sorted(files(tmp_path / "out")) == sorted(names)
    assert len(list((tmp_path / "out/pictures").rglob("*.jpg"))) == len(names)
    assert "0 images predicted" in run(folder)
    assert sorted(files(tmp_path / "out")) == sorted(names)


def test_any_kind_of_image_is_read_and_what_is_none_is_listed(run, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photo = Image.open(image).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.asarray(photo)[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    for mode, name in (("RGBA", "alpha.png"), ("P", "palette.png"), ("CMYK", "print.jpg"), ("L", "grey.TIFF"), ("1", "bit.png")):
        photo.convert(mode).save(folder / name)
    photo.save(folder / "fine.webp")
    good = {path.name for path in folder.iterdir()}
    (folder / "cut.png").write_bytes(image.read_bytes()[:900])
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not meant")
    (folder / ".hidden.png").write_text("not meant")
    output = run(folder, folder / "missing.png", "--save_maps")
    assert set(files(tmp_path / "out")) == good
    assert np.load(tmp_path / "out/maps/turned.jpg.npy").shape == (60, 40)
    assert np.load(tmp_path / "out/maps/deep.png.npy").shape == (40, 60)
    bad = ["cut.png", "empty.jpg", "text.png", str(folder / "missing.png")]
    assert sorted(files(tmp_path / "out", "errors.csv")) == sorted(bad)
    assert "4 without a score" in output
    assert all(name in output for name in bad)
    for name in bad:
        (folder / name).write_bytes(image.read_bytes())
    assert f"4 images predicted, {len(good)} were there already" in run(folder)
    assert not (tmp_path / "out/errors.csv").exists()


def test_the_endings_are_those_of_image_lists(tmp_path: Path) -> None:
    names = {f"image{extension}" for extension in IMAGE_EXTENSIONS}
    for name in (*names, "notes.txt"):
        (tmp_path / name).touch()
    assert {path.name for path in find_inputs([str(tmp_path)], tmp_path / "out").paths} == names


# --- inputs ---


def test_patterns_folders_and_files_name_each_image_once(run, image: Path, tmp_path: Path, monkeypatch) -> None:
    links(tmp_path / "in/a", image, 2)
    links(tmp_path / "in/b/c", image, 2)
    monkeypatch.chdir(tmp_path)
    run("in/**/*.png", "in/b", "in/a/0000.png")
    assert files(tmp_path / "out") == ["a/0000.png", "a/0001.png", "b/c/0000.png", "b/c/0001.png"]
    monkeypatch.chdir("/")
    assert "0 images predicted, 4 were there already" in run(tmp_path / "in/b")


def test_what_it_wrote_into_the_folder_of_images_is_no_image(run, image: Path, tmp_path: Path) -> None:
    folder = links(tmp_path / "in", image, 2)
    for out in (folder / "out", folder, tmp_path):
        run(folder, out=out)
        for given in (folder, f"{folder}/**/*"):
            assert "0 images predicted, 2 were there already" in run(given, out=out)
        assert files(out) == ["0000.png", "0001.png"]
        shutil.rmtree(out / "pictures")
    run(folder, out=folder / "monday")
    assert "2 images predicted" in run(folder, out=folder / "tuesday")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").touch()
    with pytest.raises(UserError, match=r"no image or video in it; left out: 1 of type \.txt \(a\.txt\)"):
        run(tmp_path / "texts", out=tmp_path / "other")


def test_linked_folders_are_followed_and_what_is_left_out_is_counted_and_named(run, image: Path, tmp_path: Path) -> None:
    folder = links(tmp_path / "in", image, 1)
    links(tmp_path / "elsewhere", image, 1)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(tmp_path)
    (folder / "@eaDir").mkdir()
    (folder / "a.HEIC").touch()
    two = Image.new("RGB", (20, 20))
    for name in ("two.tif", "two.gif"):
        two.save(folder / name, save_all=True, append_images=[Image.new("RGB", (20, 20), "red")])
    output = run(folder)
    assert set(files(tmp_path / "out")) >= {"0000.png", "linked/0000.png", "two.tif"}
    assert "left out: 1 of type .heic (a.HEIC)" in output
    assert "left out: 1 folders of the system or of thumbnails (@eaDir)" in output
    assert "linked folders that are read under another name (loop)" in output
    assert "with further pages or frames, of which only the first is read (two." in output


def test_a_video_has_a_line_a_frame(run, image: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(7):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()
    run(path, "--batch_size", 3)
    lines = (tmp_path / "out/scores.csv").read_text().splitlines(keepends=True)
    assert files(tmp_path / "out") == [f"film.avi#{number}" for number in range(7)]
    assert len({row["score"] for row in read(tmp_path / "out")}) > 1
    assert (tmp_path / "out/pictures/film.avi#6.jpg").is_file()
    (tmp_path / "out/scores.csv").write_text("".join(lines[:4]))
    run(path)
    assert files(tmp_path / "out") == [f"film.avi#{number}" for number in range(7)]
    shutil.copy(path, tmp_path / "again.avi")
    assert "connected again" not in run(path, tmp_path / "again.avi", out=tmp_path / "both")


def test_a_video_that_is_none_is_listed(run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_text("no video")
    output = run(tmp_path / "film.mp4", image.parent)
    assert "film.mp4: is not a video" in output


def test_a_camera_that_is_not_there_is_said(run) -> None:
    with pytest.raises(UserError, match="camera 63 cannot be opened"):
        run(63)


def test_a_camera_has_a_line_a_frame_and_continues_its_numbers(run, monkeypatch, tmp_path: Path) -> None:
    class Camera:
        """Gives five frames."""

        def __init__(self, number: int) -> None:
            self.frames = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(5)]

        def grab(self) -> bool:
            return bool(self.frames)

        def retrieve(self) -> tuple[bool, np.ndarray]:
            return True, self.frames.pop()

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    run(3, "--frames", 2)
    assert files(tmp_path / "out") == ["camera3#0", "camera3#1"]
    assert "camera 3 gives no more images" in run(3)
    assert files(tmp_path / "out") == [f"camera3#{number}" for number in range(7)]


@pytest.fixture
def serve(monkeypatch):
    """serve(bodies, content_type) answers each GET on 127.0.0.1 with the next body, then with 404; returns host and port."""
    servers = []

    def start(bodies: list[bytes], content_type: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if bodies else 404)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                self.wfile.write(bodies.pop(0) if bodies else b"")

            def log_message(self, *args: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(inputs, "PAUSES", (0, 0))
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def motion_jpeg(frames: int) -> bytes:
    """What a network camera sends before its connection is lost."""
    jpegs = [cv2.imencode(".jpg", np.full((48, 64, 3), 40 * number, np.uint8))[1].tobytes() for number in range(frames)]
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return b"".join(head % len(jpeg) + jpeg + b"\r\n" for jpeg in jpegs) + b"--frame--\r\n"


def test_a_lost_stream_is_connected_again_and_counted(run, serve, tmp_path: Path) -> None:
    host = serve([motion_jpeg(3), motion_jpeg(4)], "multipart/x-mixed-replace; boundary=frame")
    output = run(f"http://user:secret@{host}/live.mjpg?key=secret")
    name = f"{host.replace(':', '_')}_live.mjpg"
    assert files(tmp_path / "out") == [f"{name}#{number}" for number in range(7)]
    assert "the stream was lost and connected again: 1 times" in output
    assert "stream gives no more images" in output
    assert "secret" not in output + "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file())


def test_a_served_video_ends_at_its_end(run, serve, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(4):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()
    host = serve([(tmp_path / "film.avi").read_bytes()] * 3, "video/x-msvideo")
    assert "connected again" not in run(f"http://{host}/film.avi")
    assert len(files(tmp_path / "out")) == 4


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.mp4", "rtsp://127.0.0.1:9/stream", "HTTP://127.0.0.1:9/a.mp4"])
def test_a_stream_that_does_not_answer_is_one_line(run, address: str) -> None:
    with pytest.raises(UserError, match="stream cannot be opened: check its connection and its address"):
        run(address)


def test_a_camera_stands_by_itself(run, image: Path) -> None:
    with pytest.raises(UserError, match="a camera or a stream is predicted by itself"):
        run("0", image)


def restore_sigint() -> None:
    """It is ignored if the tests were started with nohup and &."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_watched_folder_has_a_line_an_image_as_they_come(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "incoming").mkdir()
    data, out = image.read_bytes(), tmp_path / "out"
    (folder / "first.png").write_bytes(data)
    running = subprocess.Popen(
        command(checkpoint, out, folder, "--watch"),
        preexec_fn=restore_sigint,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait_for(names: list[str]) -> None:
        until = time.monotonic() + 60
        while not (out / "scores.csv").is_file() or files(out) != names:
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < until, files(out)
            time.sleep(0.1)

    wait_for(["first.png"])
    (folder / "first.png").unlink()  # moved away
    (folder / "sub").mkdir()
    with open(folder / "sub/slow.png", "wb") as file:  # as it comes through a network
        for start in range(0, len(data), len(data) // 4 + 1):
            file.write(data[start : start + len(data) // 4 + 1])
            file.flush()
            time.sleep(0.6)
    (folder / "notes.txt").write_text("no image")
    wait_for(["first.png", "sub/slow.png"])
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "last.png").write_bytes(data)
    wait_for(["first.png", "sub/slow.png", "last.png"])
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "3 images predicted" in output
    assert files(out, "errors.csv") == ["broken.png"]


def test_a_later_watch_goes_on_with_the_window_of_drift_that_was_not_full(
    run, calibrated, checkpoint: Path, image: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(inputs, "LOOK", 0.01)
    calibrated(file_hash(checkpoint))
    watch = (links(tmp_path / "incoming", image, 110), "--watch", "--class_name", "cup", "--frames")
    assert "drift: not known yet: 60 of 100 good images" in run(*watch, 60)
    assert "the last of 1 windows" in run(*watch, 50)
    assert "images 1 to 100" in Page(write_prediction_report(tmp_path / "out")).words()


def test_only_a_folder_can_be_watched(run, image: Path, tmp_path: Path) -> None:
    for given in ([image], [tmp_path, tmp_path], [tmp_path / "none"]):
        with pytest.raises(UserError, match="--watch takes one folder that is there"):
            run(*given, "--watch")


@pytest.mark.parametrize(
    ("given", "reason"),
    [("missing", "there is no such file"), ("in", "there is no image"), ("in/*.png", "the pattern matches no image")],
)
def test_nothing_found_is_an_error_that_names_it(run, tmp_path: Path, given: str, reason: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=reason):
        run(tmp_path / given)
    assert not (tmp_path / "out").exists()


def test_no_image_predicted_is_an_error(run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"no image could be predicted: text\.png"):
        run(tmp_path / "text.png")


# --- continuing ---


def test_hostile_files_have_a_line_each(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = [f"{number:04d}.png" for number in range(1000)]
    for name, data in zip(names, hostile_images(len(names), seed=1), strict=True):
        (tmp_path / "in" / name).write_bytes(data)
    done = subprocess.run(command(checkpoint, tmp_path / "out", tmp_path / "in"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    scored, failed = files(tmp_path / "out"), files(tmp_path / "out", "errors.csv")
    assert sorted(scored + failed) == names
    assert len(scored) > 100
    assert len(failed) > 100


def test_killed_in_the_middle_it_goes_on_without_loss_or_repeat(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    folder, out = links(tmp_path / "in", image, 120), tmp_path / "out"
    arguments = command(checkpoint, out, folder, "--batch_size", 2)
    process = subprocess.Popen(arguments, cwd="/", env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    scores = out / "scores.csv"
    while process.poll() is None and (not scores.exists() or scores.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = scores.read_bytes()
    assert 20 <= before.count(b"\n") < 120
    for name in files(out):
        assert (out / f"pictures/{name}.jpg").is_file()
    scores.write_bytes(before + b'"torn\nline.png')
    outcome = subprocess.run(arguments, cwd="/", env=tiny.environment(), capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert scores.read_bytes().startswith(before)
    assert sorted(files(out)) == [f"{number:04d}.png" for number in range(120)]
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == [f"{number:04d}.png.jpg" for number in range(120)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_not_finished_is_written_again(run, image: Path, tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", 'b"\n",1\n.png', "c\n.png"):
        (folder / name).write_bytes(image.read_bytes())
    run(folder, "--no_pictures")
    names, scores = files(tmp_path / "out"), tmp_path / "out/scores.csv"
    scores.write_bytes(scores.read_bytes()[:-cut])
    run(folder, "--no_pictures")
    assert files(tmp_path / "out") == names
    assert len(names) == 3


def test_scores_of_different_settings_are_not_mixed(run, trained: Path, checkpoint: Path, image: Path, tmp_path: Path) -> None:
    run(image)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "epoch": 9}, tmp_path / "other.pth.tar")
    for what, args in (
        ("threshold", ("--threshold", 3)),
        ("format", ("--format", "jsonl")),
        ("checkpoint", ("--checkpoint", tmp_path / "other.pth.tar")),
    ):
        with pytest.raises(UserError, match=f"another {what} .*choose another --out"):
            run(image, *args)
    with pytest.raises(UserError, match="another folder of images"):
        run(trained.parent / "data")
    with pytest.raises(UserError, match=r"scores\.csv: was not written by tools/predict\.py"):
        run(image, out=trained.parent / "result")
