"""A bundle decides as this repository does, anywhere, and one folder holds all of it. So do callers in other languages."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image

from tests.helpers import tiny
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.calibration import Calibration, Threshold, file_hash, save_calibration
from utils.evaluation.decisions import Rule
from utils.evaluation.regions import find_regions
from utils.predict import bundle
from utils.predict.bundle import anomaly
from utils.predict.export import export_bundle
from utils.predict.predictor import Predictor, resize_map

MIN_AREA = 0.004
USERS_FILES = ("utils.py", "datasets.py")


@pytest.fixture(scope="module")
def calibrated(trained, checkpoint) -> Path:
    """A checkpoint with thresholds that some test images exceed, and other ones for cup."""
    scores, maps = Predictor.from_checkpoint(checkpoint, "cpu")(images_in(trained.parent))

    def threshold(share: float) -> Threshold:
        values = (float(np.quantile(numbers, share)) for numbers in (scores, np.stack(maps)))
        return Threshold(next(values), len(scores), (0.01, 0.2), next(values), tuple(sorted(scores)))

    found = (threshold(0.6), {"cup": threshold(0.3)})
    calibration = Calibration("max", 0.05, checkpoint.name, file_hash(checkpoint), 1, "test images", *found, MIN_AREA)
    save_calibration(calibration, checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def line(calibrated, tmp_path_factory) -> Path:
    """A bundle."""
    folder = tmp_path_factory.mktemp("bundle") / "line"
    assert str(folder) in export_bundle(calibrated, folder)
    return folder


@pytest.fixture(scope="module")
def photographs(trained, tmp_path_factory) -> list[Path]:
    """The test images, and files of other sizes and kinds."""
    folder, original = tmp_path_factory.mktemp("photographs"), cv2.imread(str(images_in(trained.parent)[2]))
    sizes = {"wide.png": (200, 90), "tall.jpg": (70, 333), "small.png": (20, 30), "large.jpg": (900, 700), "pixel.png": (1, 1)}
    for name, size in sizes.items():
        tiny.save_image(folder / name, cv2.resize(original, size))
    tiny.save_image(folder / "grey.png", cv2.cvtColor(original, cv2.COLOR_BGR2GRAY))
    tiny.save_image(folder / "grey.jpg", cv2.cvtColor(original, cv2.COLOR_BGR2GRAY))
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    alpha = (noise >> 8).astype(np.uint8)[..., None]
    tiny.save_image(folder / "alpha.png", np.concatenate([original, alpha], axis=2))
    tiny.save_image(folder / "16bit.png", cv2.cvtColor(original, cv2.COLOR_BGR2GRAY) * np.uint16(256) + noise % 256)
    tiny.save_image(folder / "16bit_colour.png", original * np.uint16(256) + (noise % 256)[..., None])
    picture = Image.fromarray(cv2.cvtColor(cv2.resize(original, (120, 80)), cv2.COLOR_BGR2RGB))
    picture.convert("LA").save(folder / "grey_alpha.png")
    picture.quantize(16).save(folder / "palette.png")
    for orientation in (3, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(folder / f"turned{orientation}.jpg", exif=exif)
    return [*images_in(trained.parent), *sorted(folder.iterdir())]


def images_in(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("*/test/*/*.png"))


@pytest.mark.parametrize("class_name", [None, "cup"])
def test_scores_decisions_and_regions_are_those_of_the_exported_file(line, photographs, class_name) -> None:
    engine = Predictor.from_checkpoint(line / "model.onnx")
    verdicts = check_same(anomaly.Predictor(line / "model.onnx", class_name), engine, photographs, class_name)
    assert verdicts == {"defective", "good"}  # the files show both


def test_colour_mode_filter_and_type_of_the_input_are_the_model_s(trained, calibrated, photographs, tmp_path) -> None:
    config = load_config(trained, ["dataset.image_reader.kwargs.color_mode=GRAY"])
    export_bundle(calibrated, tmp_path / "line", "float", config)
    model = onnx.load(tmp_path / "line/model.onnx")
    next(entry for entry in model.metadata_props if entry.key == "resample").value = '"lanczos"'
    onnx.save(model, tmp_path / "line/model.onnx")
    engine = Predictor.from_checkpoint(tmp_path / "line/model.onnx")
    check_same(anomaly.Predictor(tmp_path / "line/model.onnx"), engine, photographs)


def check_same(predictor: anomaly.Predictor, reference: Predictor, files: list[Path], class_name: str | None = None) -> set[str]:
    """Returns the verdicts that there were."""
    rule = Rule.of(reference.engine.calibration, class_name)
    verdicts = set()
    for file in files:
        score, anomaly_map = reference(file)
        wanted, result = rule.decide(score, anomaly_map), predictor(file)
        found = (result.score, result.decision, result.ratio, result.p)
        assert found == (score, wanted.verdict, wanted.ratio, wanted.p), file
        np.testing.assert_array_equal(result.mask, wanted.mask, str(file))
        assert [asdict(region) for region in result.regions] == [
            pytest.approx(asdict(region), rel=1e-5) for region in wanted.regions
        ], file
        verdicts.add(result.decision)
        assert result.regions or file.name == "pixel.png"
    return verdicts


def test_decisions_are_those_of_pytorch_but_for_pixels_at_the_threshold(calibrated, line, photographs) -> None:
    reference, predictor = Predictor.from_checkpoint(calibrated, "cpu"), anomaly.Predictor(line / "model.onnx")
    rule = Rule.of(reference.engine.calibration)
    for file in photographs:
        score, anomaly_map = reference(file)
        result = predictor(file)
        assert result.score == pytest.approx(score, rel=1e-5)
        assert abs(score / rule.threshold - 1) < 1e-5 or result.decision == rule.decide(score, anomaly_map).verdict
        at_threshold = abs(anomaly_map - rule.pixel_threshold) < 1e-4 * np.ptp(anomaly_map)
        above = (anomaly_map > rule.pixel_threshold) & ~at_threshold
        np.testing.assert_array_equal((result.anomaly_map > rule.pixel_threshold) & ~at_threshold, above)


def test_an_array_and_a_pil_image_give_what_their_file_gives(line, photographs) -> None:
    predictor, rgb = anomaly.Predictor(line / "model.onnx"), np.asarray(Image.open(photographs[0]))
    assert predictor(rgb).score == predictor(Image.fromarray(rgb)).score == predictor(photographs[0]).score


@pytest.mark.parametrize("size", [(48, 80), (64, 64), (200, 31), (1, 1), (3, 500), (1500, 2000)])
def test_maps_are_resized_as_opencv_does(size) -> None:
    anomaly_map = np.random.default_rng(0).uniform(32, 97, (64, 48)).astype(np.float32)
    np.testing.assert_allclose(anomaly.resize_map(anomaly_map, *size), resize_map(anomaly_map, size), rtol=1e-5)


def patterns() -> Iterator[tuple[str, np.ndarray, float]]:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (9, 1), (2, 2), (40, 51), (300, 200)):
        for share in (0.05, 0.4, 0.6, 1.0):
            yield f"noise {shape} {share}", rng.random(shape, dtype=np.float32), 1 - share
    lines = np.zeros((120, 151), np.float32)
    lines[:, ::2] = rng.uniform(0.6, 1, lines[:, ::2].shape)
    for name, rows, columns in (("comb", -1, slice(None)), ("comb above", 0, slice(None)), ("bars", 0, 0)):
        pattern = lines.copy()
        pattern[rows, columns] = 0.7
        yield name, pattern, 0.5
    snake = lines.copy()
    snake[0, 1::4] = snake[-1, 3::4] = 0.8
    yield "snake", snake, 0.5
    yield "snake, turned", snake.T.copy(), 0.5
    yield "diagonals", np.indices((90, 90)).sum(axis=0).astype(np.float32) % 3, 1.5
    yield "nothing", np.zeros((5, 5), np.float32), 0.5


@pytest.mark.parametrize("min_area", [0.0, MIN_AREA])
@pytest.mark.parametrize(("anomaly_map", "threshold"), [pytest.param(*rest, id=name) for name, *rest in patterns()])
def test_regions_are_those_of_evaluation(anomaly_map, threshold, min_area) -> None:
    numbers, wanted = find_regions(anomaly_map, threshold, min_area)
    mask, found = anomaly.find_regions(anomaly_map, threshold, min_area)
    np.testing.assert_array_equal(mask, numbers > 0)
    assert [asdict(region) for region in found] == [pytest.approx(asdict(region), rel=1e-5) for region in wanted]


def run_bundle(folder: Path, *args: str | Path, python: str | Path = sys.executable) -> tiny.Outcome:
    """`python anomaly.py *args` from the folder /."""
    command = [str(python), str(folder / "anomaly.py"), *map(str, args)]
    outcome = subprocess.run(command, cwd="/", env=tiny.environment(), capture_output=True, text=True, check=False)
    return tiny.Outcome(outcome.returncode, outcome.stdout, outcome.stderr)


def test_the_command_writes_a_line_and_a_mask_an_image(line, photographs, tmp_path) -> None:
    files = photographs[-15:]  # the test images share their names
    outcome = run_bundle(line, *files, "--masks", tmp_path / "masks")
    assert (outcome.code, outcome.stderr) == (0, "")
    predictor = anomaly.Predictor(line / "model.onnx")
    assert len(outcome.stdout.splitlines()) == len(list((tmp_path / "masks").iterdir())) == len(files)
    for file, text in zip(files, outcome.stdout.splitlines(), strict=True):
        result, printed = predictor(file), json.loads(text)
        assert printed.pop("file") == str(file)
        assert printed.pop("regions") == [asdict(region) for region in result.regions]
        assert printed == {name: getattr(result, name) for name in ("score", "decision", "ratio", "p")}
        mask = cv2.imread(str(tmp_path / "masks" / f"{file.name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, result.mask * 255)


def test_an_image_that_cannot_be_read_is_a_line_and_the_others_go_on(line, photographs, tmp_path) -> None:
    bad = {name: tmp_path / name for name in ("gone.png", "empty.png", "text\nof two lines.png", "cut.jpg", "float.tif")}
    bad["empty.png"].write_bytes(b"")
    bad["text\nof two lines.png"].write_text("no image")
    bad["cut.jpg"].write_bytes(next(file for file in photographs if file.name == "large.jpg").read_bytes()[:3000])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(bad["float.tif"])
    outcome = run_bundle(line, photographs[0], *bad.values(), photographs[1])
    assert outcome.code == 1
    assert [json.loads(text)["file"] for text in outcome.stdout.splitlines()] == list(map(str, photographs[:2]))
    lines = outcome.stderr.splitlines()
    assert len(lines) == len(bad)
    for name, text in zip(bad, lines, strict=True):
        assert text.startswith("error: " + str(bad[name]).replace("\n", r"\n")), text


def test_a_map_that_is_not_finite_is_refused(line, photographs, tmp_path) -> None:
    shutil.copytree(line, tmp_path / "line")
    change_model(tmp_path / "line", fill_with_nan)
    outcome = run_bundle(tmp_path / "line", photographs[0])
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == f"error: {photographs[0]}: its anomaly map holds values that are not finite\n"


def fill_with_nan(model: onnx.ModelProto) -> None:
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) > 1:  # no scale of a resizing
            values = np.full_like(onnx.numpy_helper.to_array(weights), np.nan)
            weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


def drop(key: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.metadata_props.remove(next(entry for entry in model.metadata_props if entry.key == key))

    return change


def set_version(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "format_version").value = "99"


def change_model(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")


CHANGES = {"no metadata": drop("format_version"), "format 99": set_version, "no entry 'resample'": drop("resample")}


@pytest.mark.parametrize("reason", CHANGES)
def test_metadata_that_are_missing_are_one_line(line, photographs, tmp_path, reason) -> None:
    shutil.copytree(line, tmp_path / "line")
    change_model(tmp_path / "line", CHANGES[reason])
    check_refused(run_bundle(tmp_path / "line", photographs[0]), reason)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_model_that_is_damaged_is_one_line(line, photographs, tmp_path, content) -> None:
    shutil.copytree(line, tmp_path / "line")
    (tmp_path / "line/model.onnx").unlink()
    if content is not None:
        (tmp_path / "line/model.onnx").write_bytes(content)
    check_refused(run_bundle(tmp_path / "line", photographs[0]), "missing, damaged or no ONNX file")


def test_an_unknown_class_and_masks_of_one_name_are_one_line(line, photographs, tmp_path) -> None:
    check_refused(run_bundle(line, photographs[0], "--class_name", "mug"), "its classes: cup")
    check_refused(run_bundle(line, photographs[0], photographs[0], "--masks", tmp_path), "2 are named 000.png")


def check_refused(outcome: tiny.Outcome, reason: str) -> None:
    assert (outcome.code, outcome.stdout) == (2, "")
    assert re.fullmatch(f"error: .*{re.escape(reason)}.*\n", outcome.stderr), outcome.stderr


def test_the_python_file_imports_three_packages_and_the_standard_library() -> None:
    imports = [node for node in ast.walk(ast.parse(bundle.SCRIPT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


def test_an_empty_environment_beside_a_user_s_files_gives_the_same_lines(line, photographs, tmp_path) -> None:
    user, python = tmp_path / "user", make_environment(tmp_path / "environment")
    shutil.copytree(line, user)
    for name in USERS_FILES:
        (user / name).write_text("raise SystemExit('the file of the user was imported')\n")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", user / "requirements.txt"]
    subprocess.run(install, cwd=user, env=tiny.environment(), check=True)
    outcome, wanted = run_bundle(user, *photographs, python=python), run_bundle(line, *photographs)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == wanted.stdout
    script = f"import anomaly; print(anomaly.Predictor()({str(photographs[0])!r}).decision)"
    assert run([python, "-c", script], user).strip() == json.loads(wanted.stdout.splitlines()[0])["decision"]
    for name in USERS_FILES:
        assert (user / name).read_text() == "raise SystemExit('the file of the user was imported')\n"


def make_environment(folder: Path) -> Path:
    """The Python of a new virtual environment; the test is skipped where pip reaches no registry."""
    subprocess.run([sys.executable, "-m", "venv", folder], env=tiny.environment(), check=True)
    python = folder / "bin/python"
    probe = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0", "--dest", folder / "probe", "pillow"]
    outcome = subprocess.run(probe, env=tiny.environment(), capture_output=True, text=True, check=False)
    if outcome.returncode:
        pytest.skip(f"pip reaches no registry: {outcome.stderr.strip().splitlines()[-1]}")
    return python


def test_a_folder_of_other_files_is_refused_before_the_export(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder, reason in ((tmp_path, "holds other files and no bundle"), (tmp_path / "notes.txt", "is not a folder")):
        with pytest.raises(UserError, match=reason):
            export_bundle(tmp_path / "no checkpoint", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("before", ["nothing", "empty", "bundle"])
def test_a_bundle_is_written_into_a_new_or_empty_folder_or_over_an_earlier_one(tmp_path, before) -> None:
    folder = tmp_path / "one/line"
    users = {}
    if before != "nothing":
        folder.mkdir(parents=True)
    if before == "bundle":
        bundle.write_bundle(folder, b"earlier")
        users = dict.fromkeys(USERS_FILES, b"mine")
        for name, content in users.items():
            (folder / name).write_bytes(content)
    bundle.check_bundle_folder(folder)
    bundle.write_bundle(folder, b"model")
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    pins = contents.pop("requirements.txt").decode().splitlines()
    assert contents == {"model.onnx": b"model", "anomaly.py": bundle.SCRIPT.read_bytes(), **users}
    assert [pin.partition("==")[0] for pin in pins] == ["numpy", "onnxruntime", "pillow"]
    assert [path.name for path in folder.parent.iterdir()] == ["line"]


def test_what_the_disk_does_not_take_leaves_nothing(tmp_path) -> None:
    """A file where a folder should be stands for a full disk."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        bundle.write_bundle(tmp_path / "file/line", b"model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def run_export(monkeypatch, *args: str | Path) -> None:
    """`python tools/export.py *args` in this process."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, args)])
    runpy.run_path(str(tiny.ROOT / "tools/export.py"))["main"]()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give --format, or --bundle"),
        (("--bundle", "line", "--format", "torchscript"), "--bundle writes its own folder and format"),
        (("--bundle", "line", "--out", "file"), "--bundle writes its own folder and format"),
    ],
)
def test_options_of_the_tool_that_contradict_are_refused(monkeypatch, arguments, reason) -> None:
    with pytest.raises(UserError, match=reason):
        run_export(monkeypatch, "--checkpoint", "ckpt.pth.tar", *arguments)


def test_the_tool_writes_a_bundle_which_gives_scores_only_without_a_calibration(
    trained, calibrated, tmp_path, monkeypatch, capsys
) -> None:
    shutil.copy(calibrated, tmp_path / "ckpt.pth.tar")  # the calibration stays behind
    folder, image = tmp_path / "line", images_in(trained.parent)[0]
    run_export(monkeypatch, "--checkpoint", tmp_path / "ckpt.pth.tar", "--bundle", folder)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder}: differs from PyTorch by ")
    assert "tools/calibrate.py" in second
    assert sorted(path.name for path in folder.iterdir()) == ["anomaly.py", "model.onnx", "requirements.txt"]
    result = anomaly.Predictor(folder / "model.onnx")(image)
    assert result.score > 0
    assert (result.decision, result.ratio, result.p, result.regions, result.mask) == (None,) * 5
    check_refused(run_bundle(folder, image, "--masks", tmp_path / "masks"), "the model holds no pixel threshold")


CALLERS = (tiny.ROOT / "docs/callers.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    """The page's example."""
    return re.search(f"```{language}\n(.*?)```", CALLERS, re.DOTALL).group(1)


def write_pixels(folder: Path, line: Path, file: Path) -> float:
    """Copy the model into `folder`, write the image's resized pixels beside it; returns its score."""
    shutil.copy(line / "model.onnx", folder)
    predictor = anomaly.Predictor(line / "model.onnx")
    (folder / "pixels.rgb").write_bytes(predictor.prepare(anomaly.read_rgb(file)).tobytes())
    return predictor(file).score


def test_the_example_in_javascript_prints_score_and_shape(line, photographs, tmp_path) -> None:
    if not shutil.which("node"):
        pytest.skip("there is no node")
    modules = os.environ.get("NODE_PATH") or run(["npm", "root", "--global"], tmp_path).strip()
    environment = {"NODE_PATH": modules}
    if "cannot" in run(["node", "-p", "try { require('onnxruntime-node') } catch { 'cannot' }"], tmp_path, environment):
        pytest.skip(f"node finds no onnxruntime-node in {modules}: npm install --global onnxruntime-node")
    score = write_pixels(tmp_path, line, photographs[0])
    (tmp_path / "score.js").write_text(example("javascript"))
    check_printed(run(["node", "score.js", "64", "64"], tmp_path, environment), score)


def test_the_example_in_cpp_prints_score_and_shape(line, photographs, tmp_path) -> None:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    (tmp_path / "score.cpp").write_text(example("cpp"))
    (tmp_path / "probe.cpp").write_text("#include <onnxruntime_cxx_api.h>\nint main() { Ort::Env env; }\n")
    flags = ["-std=c++17", "-I/usr/include/onnxruntime", "-I/usr/local/include/onnxruntime", "-lonnxruntime"]
    probe = [compiler, "probe.cpp", *flags, "-o", "probe"]
    if subprocess.run(probe, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("the compiler finds no onnxruntime_cxx_api.h, or no libonnxruntime")
    run([compiler, "score.cpp", *flags, "-o", "score"], tmp_path)
    score = write_pixels(tmp_path, line, photographs[0])
    check_printed(run(["./score", "64", "64"], tmp_path), score)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """What the command prints on stdout."""
    variables = {**tiny.environment(), **(environment or {})}
    return subprocess.run(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout


def check_printed(text: str, score: float) -> None:
    printed, height, width = text.split()
    assert float(printed) == pytest.approx(score, rel=1e-4)
    assert (height, width) == ("64", "64")
