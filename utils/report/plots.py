"""The report's plots as SVG for inside the page: its colours are the page's, so that they follow light and dark."""

import io
import re
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from utils.evaluation.metrics import Ranking, rank_images

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same plot is the same text
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}
# Drawn in these colours, which stand for variables of the page's style sheet.
INK, GRID, GOOD, DEFECTIVE, LINE = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
NAMED = [f"#0b000{number}" for number in range(8)]  # a class each
VARIABLES = {INK: "ink-2", GRID: "grid", GOOD: "good", DEFECTIVE: "defective", LINE: "ink"} | {
    colour: f"curve-{number}" for number, colour in enumerate(NAMED)
}
BINS = 24
STEPS = [1, 2, 5, 10]  # between ticks, times a power of ten
POINTS = 201  # false-positive rates at which a curve is drawn


def draw(name: str, size: tuple[int, int], margins: tuple[int, int], alt: str, plot: Callable[[Axes], None]) -> str:
    """An SVG element. name: unique on the page; size, and margins at the left and at the foot: in CSS pixels; alt: text."""
    (w, h), (left, foot) = size, margins
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(w / 72, h / 72))  # an SVG has 72 units an inch
        axes = figure.add_axes((left / w, foot / h, (w - left - 12) / w, (h - foot - 8) / h))
        for part in (*axes.spines.values(), axes.xaxis.label, axes.yaxis.label):
            part.set_color(INK)
        axes.tick_params(colors=INK)
        axes.grid(color=GRID, linewidth=0.8)
        plot(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return tidy(text.getvalue(), name, alt)


def tidy(svg: str, name: str, alt: str) -> str:
    """What matplotlib wrote as an element of a page: no prologue, ids of its own, the page's colours, an alternative text."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    view_box = re.search(r'viewBox="[^"]*"', svg)[0]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;]*; ", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg class="plot" {view_box} role="img" aria-label="{escape(alt)}">{body}'


def whole_label(value: float, _: int | None = None) -> str:
    """A tick by itself: the default leaves a power of ten or an offset to the end of the axis, where there is no room."""
    return f"{value:.6g}"


def histogram(
    name: str,
    alt: str,
    good: np.ndarray,
    defective: np.ndarray,
    bounds: tuple[float, float],
    threshold: float | None = None,
) -> str:
    """How the scores of good and of defective images are spread, each as shares of its own number, in the same bins.

    threshold: a score within the bounds, marked by a line.
    """
    low, high = bounds if bounds[1] > bounds[0] else (bounds[0] - 0.5, bounds[0] + 0.5)
    edges = np.linspace(low, high, BINS + 1)

    def plot(axes: Axes) -> None:
        for scores, colour in ((good, GOOD), (defective, DEFECTIVE)):
            if len(scores):
                shares = np.histogram(scores, edges)[0] / len(scores)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
                axes.stairs(shares, edges, color=colour, linewidth=1.4)
        if threshold is not None:
            axes.axvline(threshold, color=LINE, linewidth=1.2, linestyle=(0, (3, 2)))
        axes.grid(visible=False, axis="x")
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.xaxis.set_major_formatter(whole_label)
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw(name, (260, 130), (34, 22), alt, plot)


def roc_points(ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """The curve's true-positive rate at POINTS false-positive rates from 0 to 1; where it steps up, the upper end."""
    # A threshold adds two corners: flat as far as the false positives before it, then straight through its ties.
    false_positives = np.stack([ranking.false_positives_before, ranking.false_positives], axis=1).ravel()  # 2K
    fpr = np.concatenate([[0.0], false_positives / ranking.negatives, [1.0]])
    tpr = np.concatenate([[0.0, 0.0], np.repeat(ranking.true_positives / ranking.positives, 2)])
    grid = np.linspace(0, 1, POINTS)
    return grid, np.interp(grid, fpr, tpr)


def roc(
    name: str,
    alt: str,
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    most: int,
    everything: tuple[np.ndarray, np.ndarray],
) -> str:
    """A curve a class, the first ones in the colours NAMED and others, up to `most` in all, faint; the mean of all; all images.

    curves: (scores, labels) of each class, both labels in each; everything: those of all images.
    """

    def plot(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
        drawn = [roc_points(rank_images(scores, labels)) for scores, labels in curves]
        for number, (fpr, tpr) in reversed(list(enumerate(drawn[:most]))):
            is_named = number < len(NAMED)
            axes.plot(fpr, tpr, color=NAMED[number] if is_named else GRID, linewidth=1.3 if is_named else 0.9)
        if len(drawn) > 1:
            axes.plot(*roc_points(rank_images(*everything)), color=LINE, linewidth=1.3, linestyle=(0, (4, 2)))
            axes.plot(drawn[0][0], np.mean([tpr for _, tpr in drawn], axis=0), color=LINE, linewidth=2.4)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="good images called defective", ylabel="defective images found")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw(name, (350, 330), (48, 40), alt, plot)


def training_curve(name: str, alt: str, label: str, epochs: Sequence[float], values: Sequence[float]) -> str:
    """A value against the epoch; where there are few, each is marked."""

    def plot(axes: Axes) -> None:
        axes.plot(epochs, values, color=GOOD, linewidth=1.6, marker="o" if len(epochs) < 20 else None, markersize=4)
        axes.set(xlabel="epoch", ylabel=label)
        axes.margins(x=0.03)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.yaxis.set_major_formatter(whole_label)

    return draw(name, (440, 250), (52, 40), alt, plot)
