"""The report's plots as SVG for inside the page. They are drawn in currentColor, so they follow its light and dark style."""

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from utils.evaluation.metrics import Ranking, rank_images

INK = "#010203"  # stands for currentColor; matplotlib leaves black out of an SVG
GOOD, DEFECTIVE, LINE = "var(--good)", "var(--defective)", "var(--ink)"  # as an artist's gid: the style sheet's colour for it
NAMED = [f"var(--curve-{number})" for number in range(8)]  # a class each
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.prop_cycle": mpl.cycler(color=[INK]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
} | dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color", "xtick.color", "ytick.color"), INK)
BINS = 24
STEPS = [1, 2, 5, 10]  # between ticks, times a power of ten
NUMBER = "{x:.6g}"  # each tick by itself: the default puts a common factor at the end of the axis, where there is no room
PARTS, RATES, IMAGES = 240, 60, 20  # parts of a plot over time; of rates fewer, each of at least so many images
SMALLEST = 1e-12  # p value that a plot shows: a smaller one is drawn there
POINTS = 201  # false-positive rates at which a curve is drawn


def new_axes(w: int, h: int, left: int, foot: int) -> Axes:
    """Sizes, and margins at the left and at the foot, in CSS pixels."""
    figure = Figure(figsize=(w / 72, h / 72))  # an SVG has 72 units an inch
    return figure.add_axes((left / w, foot / h, (w - left - 12) / w, (h - foot - 8) / h))


def to_svg(axes: Axes, alt: str) -> Markup:
    """The figure as an SVG element with an alternative text; `alt` is unique on the page."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": ascii(alt)}):  # ids within the plot are unique, and the same plot is the same text
        axes.figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    body = text.getvalue().split("</defs>", 1)[1]  # without prologue, opening tag and style
    body = body.replace(INK, "currentColor").replace('<g id="var', '<g style="color: var').replace("xlink:href", "href")
    body = re.sub(r'(?<=<g) id="[^"]*"|font-family: [^;]*; ', "", body)
    view_box = " ".join(f"{72 * side:g}" for side in axes.figure.get_size_inches())
    return Markup(f'<svg class="plot" viewBox="0 0 {view_box}" role="img" aria-label="{escape(alt)}">{body}')


@mpl.rc_context(SETTINGS)
def histogram(alt: str, scores: np.ndarray, labels: np.ndarray, threshold: float | None, log: bool = False) -> Markup:
    """The scores of good and of defective images in the same bins, as shares of each label's images; the threshold as a line.

    log: in bins of equal ratio; all scores are above 0.
    """
    values = scores if threshold is None else np.append(scores, threshold)
    low, high = values.min(), values.max()
    if high <= low:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    edges = (np.geomspace if log else np.linspace)(low, high, BINS + 1)
    edges[[0, -1]] = low, high  # geomspace rounds
    axes = new_axes(260, 130, left=34, foot=22)
    for label, gid in enumerate((GOOD, DEFECTIVE)):
        if (labels == label).any():
            shares = np.histogram(scores[labels == label], edges)[0] / np.count_nonzero(labels == label)
            axes.stairs(shares, edges, fill=True, color=INK, alpha=0.35, linewidth=0, gid=gid)
            axes.stairs(shares, edges, color=INK, linewidth=1.4, gid=gid)
    if threshold is not None:
        axes.axvline(threshold, color=INK, gid=LINE, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.grid(visible=False, axis="x")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator(numticks=5) if log else MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_major_formatter(NUMBER)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return to_svg(axes, alt)


def roc_points(ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """The curve's true-positive rate at POINTS false-positive rates from 0 to 1; where it steps up, the upper end."""
    # Each threshold adds two corners: the curve is flat up to the false positives before, then straight through the ties.
    false_positives = np.stack([ranking.false_positives_before, ranking.false_positives], axis=1).ravel()  # 2K
    fpr = np.concatenate([[0.0], false_positives / ranking.negatives, [1.0]])
    tpr = np.concatenate([[0.0, 0.0], np.repeat(ranking.true_positives / ranking.positives, 2)])
    grid = np.linspace(0, 1, POINTS)
    return grid, np.interp(grid, fpr, tpr)


@mpl.rc_context(SETTINGS)
def roc(alt: str, rankings: Sequence[Ranking], most: int, everything: tuple[np.ndarray, np.ndarray]) -> Markup:
    """A curve a class: the first ones in the colours NAMED, others faint, `most` in all; then their mean, and all images.

    everything: scores and labels of all images, ranked together.
    """
    axes = new_axes(350, 330, left=48, foot=40)
    axes.plot([0, 1], [0, 1], linewidth=1, alpha=0.15)
    curves = [roc_points(ranking) for ranking in rankings]
    for number, curve in reversed(list(enumerate(curves[:most]))):
        if number < len(NAMED):
            axes.plot(*curve, gid=NAMED[number], linewidth=1.3)
        else:
            axes.plot(*curve, linewidth=0.9, alpha=0.15)
    if len(curves) > 1:
        axes.plot(*roc_points(rank_images(*everything)), gid=LINE, linewidth=1.3, linestyle=(0, (4, 2)))
        axes.plot(curves[0][0], np.mean([tpr for _, tpr in curves], axis=0), gid=LINE, linewidth=2.4)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="good images called defective", ylabel="defective images found")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return to_svg(axes, alt)


@mpl.rc_context(SETTINGS)
def training_curve(alt: str, label: str, epochs: Sequence[float], values: Sequence[float]) -> Markup:
    """A value against the epoch; a few values are marked."""
    axes = new_axes(440, 250, left=52, foot=40)
    axes.plot(epochs, values, gid=GOOD, linewidth=1.6, marker="o" if len(epochs) < 20 else None, markersize=4)
    axes.set(xlabel="epoch", ylabel=label)
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(NUMBER)
    return to_svg(axes, alt)


def split(count: int, most: int) -> np.ndarray:
    """The edges of at most so many equal parts of `count` images in their order, counted from 0."""
    return np.unique(np.linspace(0, count, min(count, most) + 1).round().astype(int))


def time_axes(count: int, label: str) -> Axes:
    """For `count` images in the order in which they came; plots below each other have the same."""
    axes = new_axes(700, 170, left=60, foot=40)
    axes.set(xlim=(0, count), xlabel="images, in the order in which they came", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=STEPS, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return axes


def draw_threshold(axes: Axes, value: float) -> None:
    axes.axhline(value, color=INK, gid=LINE, linewidth=1.2, linestyle=(0, (3, 2)))


@mpl.rc_context(SETTINGS)
def scores_over_time(alt: str, scores: np.ndarray, threshold: float | None) -> Markup:
    """Of each part the median, and the range from the lowest to the highest; what is above the threshold stands out."""
    edges = split(len(scores), PARTS)
    groups = np.split(scores, edges[1:-1])
    low, middle, high = (np.array([find(group) for group in groups]) for find in (np.min, np.median, np.max))
    axes = time_axes(len(scores), "score")
    axes.stairs(high, edges, baseline=low, fill=True, color=INK, alpha=0.35, linewidth=0, gid=GOOD)
    axes.stairs(middle, edges, baseline=None, color=INK, linewidth=1.2, gid=GOOD)
    if threshold is not None:
        axes.stairs(np.maximum(high, threshold), edges, baseline=threshold, fill=True, color=INK, linewidth=0, gid=DEFECTIVE)
        draw_threshold(axes, threshold)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(NUMBER)
    return to_svg(axes, alt)


@mpl.rc_context(SETTINGS)
def share_over_time(alt: str, called: np.ndarray) -> Markup:
    """Of each part the share of images that were called defective. called: N of {0, 1}."""
    edges = split(len(called), min(RATES, max(1, len(called) // IMAGES)))
    axes = time_axes(len(called), "defective")
    shares = [group.mean() for group in np.split(called, edges[1:-1])]
    axes.stairs(shares, edges, fill=True, color=INK, alpha=0.35, linewidth=0, gid=DEFECTIVE)
    axes.stairs(shares, edges, color=INK, linewidth=1.4, gid=DEFECTIVE)
    axes.set_ylim(0, max(0.01, *shares) * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return to_svg(axes, alt)


@mpl.rc_context(SETTINGS)
def p_over_time(alt: str, count: int, ends: np.ndarray, values: np.ndarray, alarm: float) -> Markup:
    """The p value of each window at its last image, with the alarm's; of many windows the lowest of each part.

    ends, values: of W windows of `count` images.
    """
    firsts = split(len(values), PARTS)[:-1]
    lowest = np.maximum(np.minimum.reduceat(values, firsts), SMALLEST)
    places = ends[np.append(firsts[1:], len(values)) - 1]
    axes = time_axes(count, "p")
    axes.plot(places, lowest, color=INK, linewidth=1, alpha=0.35, gid=GOOD)
    for chosen, gid in ((lowest >= alarm, GOOD), (lowest < alarm, DEFECTIVE)):
        if chosen.any():
            axes.plot(places[chosen], lowest[chosen], color=INK, linewidth=0, marker="o", markersize=4, gid=gid)
    draw_threshold(axes, alarm)
    axes.set_yscale("log")
    axes.set_ylim(min(alarm / 10, lowest.min()) / 2, 2)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(NUMBER)
    return to_svg(axes, alt)
