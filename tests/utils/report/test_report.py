"""The report: what it shows of a result folder, what it says where something is missing, and that its size is bounded."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.helpers.result_folders import EVIL, METRICS, Noise, Page, make_evaluation, read_gallery, write_folder
from utils.errors import UserError
from utils.evaluation.evaluate import Evaluation, compute_metrics, pack_masks, write_results
from utils.evaluation.metrics import image_scores
from utils.report.drawing import heat_map, normalise
from utils.report.gallery import PER_PICK, headline_score, save_gallery
from utils.report.page import HISTOGRAMS, write_report
from utils.report.result_folder import read_result

ROOT = Path(__file__).resolve().parents[3]
MB = 1_000_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("report") / "result", make_evaluation(["cup", "tile"]))


@pytest.fixture(scope="module")
def page(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of the whole folder."""
    return Page(write_report(whole, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A result folder of the test's own."""
    return Path(shutil.copytree(whole, tmp_path / "result"))


# --- the gallery: which images, which pictures ---


@pytest.mark.parametrize(
    ("names", "key", "expected"),
    [
        (["mean", "max", "pixel"], "mean_mean_auc", "mean"),
        (["mean", "max", "pixel"], "mean_pixel_auc", "max"),
        (["std", "mean", "pixel"], "mean_pixel_auc", "std"),
        (["mean", "max"], "a_class_of_max_auc", "max"),
        (["std", "mean"], None, "std"),
        (["pixel"], "mean_pixel_auc", None),
    ],
)
def test_the_headline_score_is_the_key_metrics_else_max_else_the_first(names: list[str], key: str | None, expected: str | None):
    assert headline_score({"auc": [{"name": name, "kwargs": {"avgpool_size": None}} for name in names]}, key) == expected


def test_picks_are_those_of_a_full_sort(tmp_path: Path):
    evaluation = make_evaluation(["b", "a"], good=20, defective=25)
    evaluation.grids = np.round(evaluation.grids, 1)  # many equal scores: they keep the order of the set
    save_gallery(tmp_path, evaluation, Noise(16), "mean", METRICS)
    found = read_gallery(tmp_path)
    scores = image_scores(evaluation.grids, "mean").tolist()
    assert list(found["classes"]) == ["a", "b"]
    for clsname, entry in found["classes"].items():
        members = np.flatnonzero(evaluation.clsnames == clsname).tolist()
        falling = sorted(members, key=lambda position: -scores[position])
        rising = sorted(members, key=lambda position: scores[position])
        expected = {
            "most": falling[:PER_PICK],
            "least": rising[:PER_PICK],
            "good_highest": [position for position in falling if evaluation.labels[position] == 0][:PER_PICK],
            "defective_lowest": [position for position in rising if evaluation.labels[position] == 1][:PER_PICK],
        }
        assert (entry["good"], entry["defective"]) == (20, 25)
        for pick, positions in expected.items():
            shown = [found["images"][number] for number in entry["picks"][pick]]
            assert [image["filename"] for image in shown] == list(evaluation.filenames[positions]), (clsname, pick)
            assert [image["label"] for image in shown] == list(evaluation.labels[positions])
            assert [image["score"] for image in shown] == pytest.approx([scores[position] for position in positions])
            assert [falling[image["rank"] - 1] for image in shown] == positions


def test_the_score_is_averaged_over_the_configured_window(tmp_path: Path):
    evaluation = make_evaluation(["cup"])
    metrics = {"auc": [{"name": "max", "kwargs": {"avgpool_size": [4, 4]}}]}
    save_gallery(tmp_path, evaluation, Noise(16), "max", metrics)
    assert read_gallery(tmp_path)["images"][0]["score"] == pytest.approx(image_scores(evaluation.grids, "max", [4, 4]).max())


def test_pictures_are_image_mask_and_heat_map_on_one_scale(tmp_path: Path):
    evaluation = make_evaluation(["cup", "tile"])
    evaluation.grids *= np.linspace(0.1, 1, len(evaluation), dtype=np.float32)[:, None, None]
    save_gallery(tmp_path, evaluation, Noise(16), "max", METRICS)
    found = read_gallery(tmp_path)
    assert (found["low"], found["high"]) == (pytest.approx(evaluation.grids.min()), pytest.approx(evaluation.grids.max()))
    for image in found["images"]:
        position = list(evaluation.filenames).index(image["filename"])
        original = Noise(16).read_rgb(position)
        heat = heat_map(original, normalise(evaluation.map(position), found["low"], found["high"]))
        for kind, expected in (("image", original), ("map", heat)):
            encoded = cv2.imencode(".jpg", expected[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
            written = cv2.imread(str(tmp_path / "report_gallery" / image["pictures"][kind]))
            np.testing.assert_array_equal(written, cv2.imdecode(encoded, cv2.IMREAD_COLOR))
        assert ("mask" in image["pictures"]) == bool(evaluation.mask(position).any())
        if "mask" in image["pictures"]:
            mask = cv2.imread(str(tmp_path / "report_gallery" / image["pictures"]["mask"]), cv2.IMREAD_GRAYSCALE)
            np.testing.assert_array_equal(mask, evaluation.mask(position) * 255)


def test_large_maps_are_shrunk_and_a_defect_of_one_pixel_stays_in_the_mask(tmp_path: Path):
    evaluation = make_evaluation(["cup"], good=1, defective=1, size=600)
    evaluation.packed_masks[1:] = pack_masks(np.pad(np.ones((1, 1, 1)), ((0, 0), (301, 298), (301, 298))))
    save_gallery(tmp_path, evaluation, Noise(300), "max", METRICS)
    assert [sorted(image["pictures"]) for image in read_gallery(tmp_path)["images"]] == [
        ["image", "map", "mask"],
        ["image", "map"],
    ]
    for image in read_gallery(tmp_path)["images"]:
        for kind, name in image["pictures"].items():
            picture = cv2.imread(str(tmp_path / "report_gallery" / name))
            assert picture.shape == (256, 256, 3)
            assert kind != "mask" or picture.any()


def test_flat_maps_have_a_gallery_too(tmp_path: Path):
    evaluation = make_evaluation(["cup"])
    evaluation.grids[:] = 0.5
    write_folder(tmp_path, evaluation)
    assert Page(write_report(tmp_path)).all("img")


def test_an_image_is_written_once_and_nothing_of_an_earlier_gallery_stays(tmp_path: Path):
    save_gallery(tmp_path, make_evaluation(["a", "b", "c"]), Noise(16), "max", METRICS)
    save_gallery(tmp_path, make_evaluation(["a"], good=3, defective=2), Noise(16), "max", METRICS)
    images = read_gallery(tmp_path)["images"]
    assert len({image["filename"] for image in images}) == len(images) == 5
    named = {name for image in images for name in image["pictures"].values()}
    assert {path.name for path in (tmp_path / "report_gallery").iterdir()} == {*named, "gallery.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["report_gallery"]


def test_a_gallery_that_fails_leaves_the_earlier_one(tmp_path: Path):
    class Unreadable(Noise):
        def read_rgb(self, index: int) -> np.ndarray:
            if index > 2:
                raise UserError("003.png: cannot be read")
            return super().read_rgb(index)

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "report_gallery").iterdir()}

    save_gallery(tmp_path, make_evaluation(["a"]), Noise(16), "max", METRICS)
    before = content()
    with pytest.raises(UserError, match=r"003\.png"):
        save_gallery(tmp_path, make_evaluation(["b"]), Unreadable(16), "max", METRICS)
    assert content() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report_gallery"]


def test_a_gallery_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "result").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="result/report_gallery: cannot be written"):
        save_gallery(tmp_path / "result", make_evaluation(["a"]), Noise(16), "max", METRICS)


# --- size ---


def test_every_class_has_the_same_few_pictures_so_that_a_big_test_set_takes_few_mb_a_class(tmp_path: Path):
    """Noise at the largest size of a picture: no photograph takes more bytes."""
    evaluation = make_evaluation([f"class {n}" for n in range(6)], good=40, defective=40, size=256)
    write_folder(tmp_path, evaluation, size=256)
    page = Page(write_report(tmp_path))
    assert len(page.source.encode()) < 6 * 2.5 * MB
    picks = [pick for entry in read_gallery(tmp_path)["classes"].values() for pick in entry["picks"].values()]
    assert [len(pick) for pick in picks] == [PER_PICK] * 4 * 6
    assert len(page.all("button", **{"class": "card"})) == 4 * 4 * 6


def test_a_gallery_of_an_earlier_version_with_more_pictures_is_shown(folder: Path):
    content = read_gallery(folder)
    content |= {"left_out": 3}
    content["classes"]["cup"]["picks"] |= {"most": list(range(7)), "least": []}
    (folder / "report_gallery/gallery.json").write_text(json.dumps(content))
    page = Page(write_report(folder))
    shown = sum(len(pick) for entry in content["classes"].values() for pick in entry["picks"].values())
    assert len(page.all("button", **{"class": "card"})) == shown
    assert "Not in this gallery." in page.words()


def test_ten_thousand_images_of_many_classes_fit(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [f"{c}/{n}.png,class{c:04d},{n % 2},{rng.random() + n % 2 * c / 500:.6g}" for n in range(10) for c in range(1000)]
    (tmp_path / "scores.csv").write_text("\n".join(["filename,clsname,label,max", *rows]))
    keys = {f"class{c:04d}_max_auc": 0.5 for c in range(1000)} | {f"zz{c}_max_auc": 0.5 for c in range(200)}
    (tmp_path / "metrics.json").write_text(json.dumps({**keys, "mean_max_auc": 0.5}))
    page = Page(write_report(tmp_path))
    assert len(page.source.encode()) < 20 * MB
    words = page.words()
    assert "10,000 5,000 good, 5,000 defective" in words
    assert "200 further classes are left out here" in words
    assert f"Shown are the {HISTOGRAMS} of 1000 classes with the lowest AUROC" in words
    assert "The 952 classes with the highest values are not drawn" in words


# --- what the page says ---


def test_table_and_head_show_every_number(page: Page):
    evaluation = make_evaluation(["cup", "tile"])
    results = compute_metrics(evaluation, METRICS).numbers()
    words = page.words()
    for clsname, counts in (("cup", " 4 5"), ("tile", " 4 5"), ("mean", "")):
        values = [f"{results[f'{clsname}_{name}_auc']:.4f}" for name in ("mean", "max", "pixel")]
        assert f"{clsname}{counts} {' '.join(values)}" in words
    assert f"Image AUROC, max {results['mean_max_auc']:.4f}" in words
    assert f"Pixel AUROC {results['mean_pixel_auc']:.4f}" in words
    assert "18 8 good, 10 defective" in words
    assert "runs/ckpt.pth.tar , epoch 2" in words


def test_curves_are_of_the_headline_score(page: Page):
    evaluation = make_evaluation(["cup", "tile"])
    scores = image_scores(evaluation.grids, "max")
    words = page.words()
    each = [roc_auc_score(evaluation.labels[rows], scores[rows]) for rows in (slice(0, 9), slice(9, 18))]
    assert f"mean of the classes {np.mean(each):.4f}" in words
    assert f"all images, one threshold {roc_auc_score(evaluation.labels, scores):.4f}" in words


def test_training_configuration_and_versions_are_shown(page: Page):
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert "training loss against the epoch: 48.1 at epoch 1 to 30.5 at epoch 2" in labels
    assert any(label.startswith("mean_max_auc against the epoch: 0.75 at epoch 2") for label in labels)
    assert "random_seed: 7 evaluator: key_metric: mean_max_auc" in page.words()
    assert "torch 2.14.1" in page.words()


def test_every_picture_has_an_alternative_text(page: Page):
    images = page.all("img")
    assert len(images) > 20
    assert all(re.fullmatch(r"(image|mask|heat map) of (cup|tile), (good|defective), \S+\.png", image["alt"]) for image in images)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))


def test_the_page_needs_no_other_file_and_forbids_itself_the_network(page: Page):
    addresses = [attrs[name] for _, attrs in page.elements for name in ("src", "href", "action") if name in attrs]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!#)|@import|https?://", page.source)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_the_same_folder_gives_the_same_page(folder: Path):
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_names_with_spaces_quotes_and_tags_are_shown_as_they_are(tmp_path: Path):
    folder = write_folder(tmp_path / EVIL.replace("/", ""), make_evaluation([EVIL, "a $x_1$ class", "_under"]))
    run = json.loads((folder / "run.json").read_text())
    run |= {"checkpoint": EVIL, "config": {EVIL: EVIL, "evaluator": {"key_metric": f"{EVIL}_max_auc"}}, "versions": {EVIL: EVIL}}
    run["history"] = [{"epoch": 1, "loss": 2.0, f"{EVIL}_max_auc": 0.5}]
    (folder / "run.json").write_text(json.dumps(run))
    page = Page(write_report(folder))
    assert len(page.all("script")) == 1
    assert page.words().count(EVIL) > 8
    assert {button["data-class"] for button in page.all("button", **{"class": "card"})} == {EVIL, "a $x_1$ class", "_under"}
    assert any(EVIL in image["alt"] for image in page.all("img"))
    assert any(svg["aria-label"].startswith(f"{EVIL}_max_auc") for svg in page.all("svg"))


# --- what is missing ---


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("metrics.json", ["No table: metrics.json is missing; evaluate with -e"]),
        ("scores.csv", ["No histograms: they need scores.csv", "No curve: it needs scores.csv"]),
        ("run.json", ["run.json is missing; evaluate with -e", "No training curve", "No configuration", "No versions"]),
        ("report_gallery", ["No gallery: evaluate with -e"]),
    ],
)
def test_a_missing_piece_is_said_in_its_section(folder: Path, page: Page, missing: str, message: list[str]):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = Page(write_report(folder)).words()
    for line in message:
        assert line in words
        assert line not in page.words()


def test_scores_alone_make_a_report(folder: Path):
    for name in ("metrics.json", "run.json", "report_gallery"):
        shutil.rmtree(folder / name) if name == "report_gallery" else (folder / name).unlink()
    page = Page(write_report(folder))
    assert len(page.all("svg")) == 3
    assert "18 8 good, 10 defective" in page.words()


@pytest.mark.parametrize(("good", "defective", "lacking"), [(6, 0, "defective"), (0, 6, "good")])
def test_a_class_of_one_label_only_is_shown(tmp_path: Path, good: int, defective: int, lacking: str):
    both, one = make_evaluation(["cup"]), make_evaluation(["tile"], good, defective)
    one.indices = one.indices + len(both.indices)
    write_folder(tmp_path, Evaluation.join([both, one]))
    page = Page(write_report(tmp_path))
    assert re.search(rf"tile {good} {defective} – – (–|[01]\.\d{{4}})", page.words()), (
        "pixels have both labels in a defective image"
    )
    assert f"There is no {lacking} image in this class." in page.words()
    assert f"tile {good} good, {defective} defective" in page.words()


def test_pixel_metrics_alone_make_a_report(tmp_path: Path):
    evaluation, metrics = make_evaluation(["cup"]), {"auc": [METRICS["auc"][2]]}
    write_results(tmp_path, evaluation, compute_metrics(evaluation, metrics), metrics)
    save_gallery(tmp_path, evaluation, Noise(16), None, metrics)
    page = Page(write_report(tmp_path))
    assert "No histograms" in page.words()
    assert page.all("img")


# --- errors ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json: not valid JSON"),
        ("metrics.json", "[1]", "metrics.json: holds list"),
        ("metrics.json", '{"cup": 1}', "metrics.json: the key 'cup' is not"),
        ("metrics.json", '{"cup_max_auc": "high"}', "metrics.json: cup_max_auc: 'high' is not a number"),
        ("scores.csv", "", "scores.csv: the first line must begin"),
        ("scores.csv", "filename,clsname,label,max\na,b,0\n", "scores.csv, line 2"),
        ("scores.csv", "filename,clsname,label,max\na,b,0,1\na,b,2,1\n", "scores.csv, line 3"),
        ("scores.csv", "filename,clsname,label,max\na,b,0,many\n", "scores.csv, line 2"),
        ("run.json", '{"history": 3}', "run.json: 'history' must be a list"),
        ("run.json", '{"history": [{"loss": 3}]}', "run.json: 'history' must hold objects"),
        ("report_gallery/gallery.json", "{}", "gallery.json: not a gallery"),
        ("report_gallery/gallery.json", '{"images": [{"filename": "a.png"}]}', "gallery.json: not a gallery"),
    ],
)
def test_a_broken_file_is_named_in_one_line(folder: Path, name: str, content: str, message: str):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        write_report(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["picture", "report_gallery", "report_gallery/gallery.json", "run.json", "scores.csv"])
def test_what_is_linked_into_the_folder_is_not_shown(folder: Path, tmp_path: Path, name: str):
    if name == "picture":
        name = f"report_gallery/{read_gallery(folder)['images'][0]['pictures']['image']}"
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link to another file, which a report does not show"):
        write_report(folder)
    (tmp_path / "linked").symlink_to(folder)  # the folder itself may be one
    (folder / name).unlink()
    (tmp_path / "elsewhere").rename(folder / name)
    assert write_report(tmp_path / "linked").is_file()


FORMULAS = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "line\nbreak", "return\rhere"]


def test_names_that_a_spreadsheet_would_run_are_cells_and_come_back(tmp_path: Path):
    evaluation = make_evaluation(FORMULAS)
    write_results(tmp_path, evaluation, compute_metrics(evaluation, METRICS), METRICS)
    with open(tmp_path / "scores.csv", newline="") as file:
        cells = [cell for row in list(csv.reader(file))[1:] for cell in row[:2]]
    assert cells
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
    assert set(read_result(tmp_path).scores.clsnames) == set(FORMULAS)
    assert len((tmp_path / "table.txt").read_text().splitlines()) == len(FORMULAS) + 4


def test_a_missing_picture_of_the_gallery_is_named(folder: Path):
    name = read_gallery(folder)["images"][0]["pictures"]["map"]
    (folder / "report_gallery" / name).unlink()
    with pytest.raises(UserError, match=f"gallery/{name}: this picture of the gallery is missing"):
        write_report(folder)


def test_a_folder_that_is_none_or_holds_no_result_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere: is not a folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: holds neither metrics.json nor scores.csv")):
        write_report(tmp_path)


# --- the tool ---


def tool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "report.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_tool_writes_the_page_and_prints_where(folder: Path, tmp_path: Path):
    done = tool("--result", "result", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "result/report.html\n")
    done = tool("--result", "result", "--out", "pages/other.html", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "pages/other.html\n")
    assert (tmp_path / "pages/other.html").read_bytes() == (folder / "report.html").read_bytes()


def test_the_tools_errors_are_one_line(tmp_path: Path):
    done = tool("--result", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere: is not a folder")
    assert done.stderr.count("\n") == 1
