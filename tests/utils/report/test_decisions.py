"""The report's sentences for the person who decides."""

import numpy as np

from utils.evaluation.calibration import Calibration, Threshold
from utils.report.decisions import Sentence, sentences
from utils.report.result_folder import Scores


def scores(rows: list[tuple[str, str, int, float, float]]) -> Scores:
    files, classes, labels, values, areas = zip(*rows, strict=True)
    return Scores(list(files), np.array(classes, dtype=object), np.array(labels), {"max": np.array(values)}, np.array(areas))


def test_a_sentence_says_what_is_missed_by_kind_and_how_small_what_is_found_was() -> None:
    rows = [
        ("cup/test/good/0.png", "cup", 0, 1.0, 0.0),
        ("cup/test/good/1.png", "cup", 0, 3.0, 0.0),
        ("cup/test/chip/0.png", "cup", 1, 3.0, 0.5),
        ("cup/test/chip/1.png", "cup", 1, 2.0, 0.1),  # at the threshold: missed
        ("cup/test/dent/0.png", "cup", 1, 5.0, 2.0),
        ("cup/test/dent/1.png", "cup", 1, 5.0, 0.0),  # without a mask
        ("lid/test/bad/0.png", "lid", 1, 1.0, 1.0),
        ("pan/test/good/0.png", "pan", 0, 9.0, 0.0),
    ]
    threshold = Threshold(2.0, 30, (0.0, 0.1))
    classes = {"cup": threshold, "lid": threshold, "not tested": threshold}
    found = sentences(scores(rows), Calibration("max", 0.05, "ckpt", "", 1, "", threshold, classes))
    assert found == [
        Sentence("lid", 0, 0, 1, 1, [("bad", 1, 1)], None),
        Sentence("cup", 2, 1, 4, 1, [("chip", 1, 2), ("dent", 0, 2)], 0.5),
    ]
