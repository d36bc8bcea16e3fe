"""Results side by side: paired differences, and the images on which they disagree."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.helpers.result_folders import EVIL, Page, make_evaluation, write_folder
from utils.errors import UserError
from utils.evaluation.evaluate import compute_metrics, write_results
from utils.report.compare import auroc_differences, disagreements, read_runs, write_comparison


def folders(tmp_path: Path, noise: float = 0.5, classes: tuple[str, ...] = ("cup", "tile")) -> list[Path]:
    """Results of the same images, the second with noise on its maps."""
    found = []
    for name, amount in (("first", 0.0), ("second", noise)):
        evaluation = make_evaluation(list(classes))
        evaluation.grids = evaluation.grids + amount * np.random.default_rng(1).random(evaluation.grids.shape, dtype=np.float32)
        found.append(write_folder(tmp_path / name, evaluation))
    return found


def test_the_difference_is_that_of_both_aurocs_and_its_interval_is_paired(tmp_path: Path) -> None:
    first, second = read_runs(folders(tmp_path))
    found = auroc_differences(first, second)
    values = []
    for clsname in ("cup", "tile"):
        chosen = first.scores.clsnames == clsname
        labels = first.scores.labels[chosen]
        values.append(roc_auc_score(labels, second.values[chosen]) - roc_auc_score(labels, first.values[chosen]))
        assert found[clsname].value == pytest.approx(values[-1])
        drawn = []  # by a plain loop
        rng = np.random.default_rng(5)
        groups = [np.flatnonzero(chosen & (first.scores.labels == label)) for label in (0, 1)]
        for _ in range(1000):
            images = np.concatenate([rng.choice(group, len(group)) for group in groups])
            aurocs = [roc_auc_score(first.scores.labels[images], run.values[images]) for run in (first, second)]
            drawn.append(aurocs[1] - aurocs[0])
        assert [found[clsname].low, found[clsname].high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.06)
    assert found["mean"].value == pytest.approx(np.mean(values))


def test_a_result_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    first, second = read_runs(folders(tmp_path, noise=0.0))
    assert all((found.value, found.low, found.high) == (0, 0, 0) for found in auroc_differences(first, second).values())
    assert disagreements([first, second]) == []


def test_images_come_by_how_far_their_places_lie_apart(tmp_path: Path) -> None:
    runs = read_runs(folders(tmp_path))
    found = disagreements(runs)
    assert found
    spreads = []
    for image in found:
        places = [int(place.split(" of ")[0]) for place in image.places]
        spreads.append(abs(places[0] - places[1]))
        for run, place in zip(runs, places, strict=True):
            chosen = run.scores.clsnames == image.clsname
            value = run.values[run.scores.filenames.index(image.filename)]
            assert place == 1 + int((run.values[chosen] > value).sum())
    assert spreads == sorted(spreads, reverse=True)
    assert min(spreads) > 0


def test_the_page_shows_all_of_it_and_runs_nothing(tmp_path: Path) -> None:
    given = folders(tmp_path, classes=("cup", EVIL))
    page = Page(write_comparison(given, tmp_path / "page.html"))
    assert page.all("script") == []
    words = page.words()
    assert EVIL in words
    assert len(re.findall(r"[+-]\d\.\d{4} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)", words)) == 3
    assert "AUROC pixel" in words
    assert "no picture: evaluate with evaluator.vis_compound" in words


def test_pictures_of_an_evaluation_are_in_the_page(tmp_path: Path) -> None:
    given = folders(tmp_path)
    for folder in given:
        for name in {image.filename for image in disagreements(read_runs(given))}:
            path = folder / "vis_compound" / Path(name).with_suffix(".jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"a picture")
    page = Page(write_comparison(given, tmp_path / "page.html"))
    assert len(page.all("img")) == 2 * len(disagreements(read_runs(given)))
    assert "no picture" not in page.words()


def test_results_of_other_images_are_refused(tmp_path: Path) -> None:
    first, _ = folders(tmp_path)
    other = write_folder(tmp_path / "other", make_evaluation(["lid"]))
    with pytest.raises(UserError, match="is of other test images than"):
        write_comparison([first, other], tmp_path / "page.html")
    with pytest.raises(UserError, match="two result folders"):
        write_comparison([first], tmp_path / "page.html")
    evaluation = make_evaluation(["cup"])
    pixels = {"auc": [{"name": "pixel", "kwargs": {}}]}
    write_results(tmp_path / "pixels", evaluation, compute_metrics(evaluation, pixels), pixels)
    with pytest.raises(UserError, match="has no image scores"):
        write_comparison([first, tmp_path / "pixels"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
