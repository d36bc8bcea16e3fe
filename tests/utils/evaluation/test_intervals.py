"""Bootstrap intervals: they are what a loop of resamples gives, cover what they should, and stand in file, log and report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tests.helpers import tiny
from tests.helpers.result_folders import METRICS, Page, make_evaluation, write_folder
from utils.errors import UserError
from utils.evaluation.evaluate import Evaluation, compute_metrics
from utils.evaluation.intervals import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    bootstrap,
    draw,
    interval,
    pooled_intervals,
    resample,
    write_intervals,
)
from utils.report.page import write_report

EVERY = {kind: [{"name": name} for name in ("mean", "max", "pixel")] for kind in ("auc", "ap", "f1max")}
EARLIER = [
    ("cup_mean_auc", 0.9453, 1.0),
    ("tile_mean_ap", 0.9395411086507096, 0.9989516129032258),
    ("tile_max_f1max", 0.9523809523809523, 1.0),
    ("mean_mean_auc", 0.9413333333333334, 0.9946666666666666),
    ("pooled_mean_auc", 0.9349916666666668, 0.987675),
]


def intervals_of(evaluation: Evaluation, metrics: dict[str, Any] = METRICS) -> dict[str, Interval | None]:
    return bootstrap(evaluation, metrics, compute_metrics(evaluation, metrics))


def noisy_scores(rng: np.random.Generator, good: int = 40, defective: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Scores in steps of 0.2, so that many are equal, and labels."""
    labels = np.repeat([0, 1], [good, defective])
    return np.round(5 * rng.normal(labels, 1)) / 5, labels


# --- resamples ---


def f1_max(labels: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def test_each_resample_draws_as_many_images_of_each_stratum_as_there_are_and_has_scikit_learn_s_metrics():
    scores, labels = noisy_scores(np.random.default_rng(1))
    plain = {"auc": roc_auc_score, "ap": average_precision_score, "f1max": f1_max}
    key = ("max", None)
    found = resample({key: scores}, labels, labels, [(kind, key) for kind in plain], np.random.default_rng(SEED))
    assert found.shape == (3, RESAMPLES)
    counts = np.concatenate(list(draw(labels, np.random.default_rng(SEED))))
    for column, row in enumerate(counts[:100]):
        assert [row[labels == label].sum() for label in (0, 1)] == [40, 30]
        expected = [metric(np.repeat(labels, row), np.repeat(scores, row)) for metric in plain.values()]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-12)


def test_large_sets_are_drawn_in_blocks():
    strata = np.repeat([0, 1], 30_000)
    rows = [len(counts) for counts in draw(strata, np.random.default_rng(SEED))]
    assert max(rows) < 100
    assert sum(rows) == RESAMPLES


def test_the_intervals_are_those_of_earlier_versions():
    """Numbers of the version that computed pixel intervals too (commit 1016ebe)."""
    found = intervals_of(make_evaluation(["cup", "tile"], good=25, defective=30), EVERY)
    for key, low, high in EARLIER:
        assert (found[key].low, found[key].high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12)), key


# --- intervals ---


def pairs_won(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUROC as the share of pairs in which the defective image has the higher score; equal ones are half won."""
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    return np.mean((np.sign(difference) + 1) / 2)


def test_the_interval_is_that_of_a_plain_loop_over_resamples():
    evaluation = make_evaluation(["cup", "tile"], good=25, defective=30)
    found = intervals_of(evaluation, EVERY)
    scores, rng = evaluation.scores([("mean", None)])["mean", None], np.random.default_rng(5)
    strata = [
        np.flatnonzero((evaluation.clsnames == c) & (evaluation.labels == label)) for c in ("cup", "tile") for label in (0, 1)
    ]
    values: dict[str, list[float]] = {"cup": [], "tile": [], "mean": [], "pooled": []}
    for _ in range(1000):
        drawn = [rng.choice(stratum, len(stratum)) for stratum in strata]
        parts = {"cup": np.concatenate(drawn[:2]), "tile": np.concatenate(drawn[2:]), "pooled": np.concatenate(drawn)}
        for name, part in parts.items():
            values[name].append(pairs_won(evaluation.labels[part], scores[part]))
        values["mean"].append((values["cup"][-1] + values["tile"][-1]) / 2)
    for name, of_name in values.items():
        low, high = np.percentile(of_name, [2.5, 97.5])
        ours = found[f"{name}_mean_auc"]
        assert (ours.low, ours.high) == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015)), name


def test_every_metric_of_images_has_an_interval_around_its_value():
    evaluation = make_evaluation(["cup", "tile"], good=25, defective=30)
    metrics = compute_metrics(evaluation, EVERY)
    found, results = bootstrap(evaluation, EVERY, metrics), metrics.numbers()
    pooled = {"pooled_mean_auc", "pooled_max_auc"}
    images = {key: value for key, value in results.items() if "_pixel_" not in key}
    assert found.keys() == images.keys() | pooled
    for key, value in images.items():
        assert found[key].value == value
    assert all(0 <= item.low <= item.value <= item.high <= 1 for item in found.values())
    assert all(item.low < item.high or item.value == 1 for item in found.values())
    scores = evaluation.scores([("max", None)])["max", None]
    assert found["pooled_max_auc"].value == pytest.approx(roc_auc_score(evaluation.labels, scores), abs=1e-12)


def test_95_of_100_intervals_hold_the_true_value():
    true = norm.cdf(1 / math.sqrt(2))  # AUROC of scores around 0 and around 1, deviation 1
    rng, key, held = np.random.default_rng(0), ("max", None), 0
    for _ in range(200):
        labels = np.repeat([0, 1], 50)
        scores = rng.normal(labels, 1)
        values = resample({key: scores}, labels, labels, [("auc", key)], rng)[0]
        found = interval(roc_auc_score(labels, scores), values)
        held += found.low <= true <= found.high
    assert CONFIDENCE == 0.95
    assert 0.91 <= held / 200 <= 0.985


def test_classes_are_drawn_independently_so_that_their_mean_varies_less():
    found = intervals_of(make_evaluation([f"c{number}" for number in range(9)], good=30, defective=30))
    widths = [found[f"c{number}_mean_auc"].high - found[f"c{number}_mean_auc"].low for number in range(9)]
    mean = found["mean_mean_auc"]
    assert mean.high - mean.low == pytest.approx(np.mean(widths) / 3, rel=0.2)


def test_the_same_scores_give_the_same_intervals():
    assert intervals_of(make_evaluation(["cup", "tile"])) == intervals_of(make_evaluation(["cup", "tile"]))


def test_a_class_of_one_label_has_none_and_counts_in_pooled_only():
    evaluation = make_evaluation(["cup", "tile"], good=20, defective=20)
    evaluation.labels[40:] = 0
    evaluation.packed_masks[40:] = b""
    found = intervals_of(evaluation)
    assert found["tile_max_auc"] is None
    assert found["mean_max_auc"] == found["cup_max_auc"]
    scores = evaluation.scores([("max", None)])["max", None]
    assert found["pooled_max_auc"].value == pytest.approx(roc_auc_score(evaluation.labels, scores), abs=1e-12)
    evaluation.labels[:] = 0
    evaluation.packed_masks[:] = b""
    assert set(intervals_of(evaluation).values()) == {None}


def test_one_class_has_nothing_to_pool_and_aupro_no_interval():
    metrics = {"auc": [{"name": "max"}], "aupro": [{"name": "pixel"}]}
    assert set(intervals_of(make_evaluation(["cup"]), metrics)) == {"cup_max_auc", "mean_max_auc"}
    assert intervals_of(make_evaluation(["cup", "tile"]), {"aupro": [{"name": "pixel"}]}) == {}


# --- where they stand ---


def test_evaluation_writes_and_prints_them_and_training_removes_those_of_an_earlier_model(tmp_path: Path, caplog):
    path = tiny.make(tmp_path)
    tiny.train(path)
    file = tmp_path / "result/intervals.json"
    assert not file.exists()
    with caplog.at_level("INFO", "uniad"):
        tiny.evaluate(path)
    found, results = (json.loads((tmp_path / "result" / name).read_text()) for name in ("intervals.json", "metrics.json"))
    assert found.keys() - results.keys() == {f"pooled_{name}_auc" for name in ("mean", "std", "max")}
    images = {key: value for key, value in results.items() if "_pixel_" not in key}
    assert {key: found[key]["value"] for key in images} == images
    pooled = found["pooled_max_auc"]
    assert f"max {pooled['value']:.4f} ({pooled['low']:.3f}–{pooled['high']:.3f})" in caplog.text
    lines = caplog.text.splitlines()
    table, line = (
        next(i for i, text in enumerate(lines) if text.startswith(start)) for start in ("mean ", "all classes, one thr")
    )
    assert table < line
    tiny.train(path, overwrite=True)
    assert not file.exists()


def test_the_report_shows_pooled_numbers_and_intervals(tmp_path: Path):
    evaluation = make_evaluation(["cup", "tile"])
    folder = write_folder(tmp_path / "result", evaluation)
    found = intervals_of(evaluation)
    write_intervals(folder, found)
    page = Page(write_report(folder))
    span = {key: f"{item.low:.3f}–{item.high:.3f}" for key, item in found.items()}
    words = page.words()
    for row, title in (("mean", "mean"), ("pooled", "one threshold")):
        cells = [f"{found[f'{row}_{name}_auc'].value:.4f} {span[f'{row}_{name}_auc']}" for name in ("mean", "max")]
        assert f"{title} {' '.join(cells)}" in words
    assert f"Image AUROC, max {found['mean_max_auc'].value:.4f} mean of the classes, 95 %: {span['mean_max_auc']}" in words
    titles = [cell["title"] for cell in page.all("td") if "title" in cell]
    assert titles == [f"95 % interval {span[f'{c}_{name}_auc']}" for c in ("cup", "tile") for name in ("mean", "max")]


@pytest.mark.parametrize("content", ["{", "[]", '{"cup_max_auc": 0.5}', '{"cup_max_auc": {"value": 0.5, "low": 0.1}}'])
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, content: str):
    folder = write_folder(tmp_path / "result", make_evaluation(["cup"]))
    (folder / "intervals.json").write_text(content)
    with pytest.raises(UserError, match=r"result/intervals\.json: .*evaluate again with -e") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)


def test_pooled_intervals_keep_the_number_of_images_of_each_class():
    """Two classes of very different scores and sizes: the share of each decides the pooled AUROC."""
    rng, parts = np.random.default_rng(0), [(0, 0, 60), (1, 0, 10), (10, 1, 10), (11, 1, 60)]  # mean, class, images
    scores = np.concatenate([rng.normal(mean, 1, count) for mean, _, count in parts])
    labels = np.repeat([0, 1, 0, 1], [count for *_, count in parts])
    classes = np.repeat([clsname for _, clsname, _ in parts], [count for *_, count in parts])
    found = pooled_intervals({("max", None): scores}, labels, np.array(["cup", "tile"], dtype=object)[classes], rng)[
        "pooled_max_auc"
    ]

    def plain(strata: np.ndarray) -> np.ndarray:
        values = []
        for _ in range(1000):
            drawn = np.concatenate([rng.choice(np.flatnonzero(strata == s), (strata == s).sum()) for s in np.unique(strata)])
            values.append(roc_auc_score(labels[drawn], scores[drawn]))
        return np.percentile(values, [2.5, 97.5])

    low, high = plain(2 * classes + labels)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert np.diff(plain(labels)) > 1.5 * (high - low)  # so that the classes matter here
