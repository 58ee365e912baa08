"""Plots of the report with matplotlib's object-oriented API: no global figures, no display."""

import io
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

# Ink and paper are swapped for the page's own colours in `inline_svg`; no other element may use
# them. Blue and vermilion are Okabe and Ito's, readable on white and on dark.
INK, PAPER, GREY = "#1f2a37", "#fefefe", "#808a96"
BLUE, VERMILION = "#0072b2", "#d55e00"

STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "savefig.facecolor": "auto",
    "svg.fonttype": "path",
    "svg.hashsalt": "caal_jax",  # equal results give equal files
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Plot(NamedTuple):
    """draw(figure, data) returns False where the data hold nothing to draw.

    metric: the result whose absence explains a missing plot.
    """

    name: str
    title: str
    caption: str
    metric: str
    draw: Callable


def new_figure(size_inches, **options):
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=size_inches, dpi=110, **options)


def stamp_figure(figure, stamp):
    """Prints the stamp of made-up data into the lower right corner; nothing for real data."""
    if stamp:
        figure.text(
            0.995,
            0.005,
            figure_text(f"{stamp.upper()} DATA"),
            ha="right",
            va="bottom",
            fontsize=9,
            fontweight="bold",
            color=VERMILION,
            parse_math=False,
        )


def figure_text(text):
    """Replaces characters that the font lacks, at which matplotlib would warn."""
    known = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(c if c.isprintable() and ord(c) in known else "\ufffd" for c in str(text))


def to_png(figure):
    return _saved(figure, FigureCanvasAgg, "png", {"Software": None})


def to_svg(figure):
    return _saved(figure, FigureCanvasSVG, "svg", {"Date": None, "Creator": None})


def _saved(figure, canvas, kind, metadata):
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        canvas(figure).print_figure(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def inline_svg(svg, prefix):
    """The bytes of an SVG file -> markup to put into the page, in the page's ink, no background.

    prefix: makes the ids of this figure differ from those of the others.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\b(id="|xlink:href="#)', rf"\1{prefix}-", text)
    text = text.replace("url(#", f"url(#{prefix}-")
    # The size comes from the page; the viewBox keeps the proportions.
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", text)
    return text.replace(INK, "currentColor").replace(PAPER, "none")


def draw_plot(plot, data, stamp):
    """The plot as bytes of an SVG and of a PNG, or None where there is nothing to draw."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure((4.6, 3.6), layout="constrained")
        if not data or not plot.draw(figure, data):
            return None
        # A strip for the stamp, which must not cover the axis label.
        figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
        stamp_figure(figure, stamp)
        return to_svg(figure), to_png(figure)


# After Okabe and Ito; the line styles tell the runs apart in grey print as well.
RUN_COLOURS = (BLUE, VERMILION, "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
RUN_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
OVERLAID = {
    "precision_recall": ("recall", "precision", "Recall", "Precision"),
    "roc": (
        "false_positive_rate",
        "true_positive_rate",
        "False positive rate",
        "True positive rate",
    ),
    "froc": (
        "false_positives",
        "sensitivity",
        "False finds per case",
        "Share of the anomalies hit",
    ),
    "reliability": ("confidence", "accuracy", "Predicted probability", "Observed share"),
    "risk_coverage": ("coverage", "risk", "Coverage", "Risk"),
}


def draw_overlaid(plot, curves, stamp):
    """One kind of curve of several runs, {run: curve or None}, as SVG bytes; None where no run has
    it. Bands only for two runs: more would hide each other."""
    if plot.name not in OVERLAID:
        return None
    x, y, xlabel, ylabel = OVERLAID[plot.name]
    found = {run: _columns(curve or {}, x, y) for run, curve in curves.items()}
    if all(points is None for points in found.values()):
        return None
    with matplotlib.rc_context(STYLE):
        figure = new_figure((4.6, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        if plot.name == "reliability":
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        for place, (run, points) in enumerate(found.items()):
            if points is None:
                continue
            if len(found) == 2:
                _draw_band(axes, curves[run].get("band"), color=RUN_COLOURS[place], alpha=0.15)
            # Matplotlib hides labels that start with an underscore and reads dollars as formulas.
            label = figure_text(run if len(run) <= 24 else f"{run[:21]}...").replace("$", r"\$")
            axes.plot(
                *points,
                color=RUN_COLOURS[place],
                linestyle=RUN_LINES[place],
                label=f"\u200a{label}",
            )
        axes.set_ylim(bottom=0)
        _legend_above(figure)
        figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
        stamp_figure(figure, stamp)
        return to_svg(figure)


def _columns(curve, *names):
    """Arrays of one length, without the points where any is not finite; None if none is left."""
    if any(curve.get(name) is None for name in names):
        return None
    arrays = np.broadcast_arrays(*(np.asarray(curve[name], np.float64) for name in names))
    table = np.atleast_2d(np.stack(arrays, axis=-1))
    table = table[np.isfinite(table).all(axis=-1)]
    return table.T if len(table) else None


def _training_curve(figure, history):
    axes = figure.add_subplot(xlabel="Step", ylabel="Loss")
    rows = [row for row in history if row.get("loss") is not None]
    # More points than pixels only make the file large.
    rows = rows[:: max(1, len(rows) // 1000)]
    losses = [np.atleast_1d(np.asarray(row["loss"], np.float64)) for row in rows]
    losses = np.array(list(itertools.zip_longest(*losses, fillvalue=np.nan)))  # (members, steps)
    if not losses.size or not np.isfinite(losses).any():
        return False
    steps = [row["step"] for row in rows]
    marker = "." if len(steps) < 30 else ""
    for place, member in enumerate(losses):
        label = "Training, each member" if len(losses) > 1 else "Training"
        label = label if place == 0 else None
        axes.plot(steps, member, color=BLUE, alpha=0.5, linewidth=1, marker=marker, label=label)
    checks = [
        (row["step"], np.mean(row["validation_loss"]))
        for row in history
        if row.get("validation_loss") is not None
    ]
    if checks:
        options = {"color": VERMILION, "marker": "o", "markersize": 4, "linestyle": "--"}
        axes.plot(*zip(*checks, strict=True), **options, label="Held-out healthy images")
    axes.set_ylim(bottom=min(0, np.nanmin(losses)))
    _legend_above(figure)
    return True


def _draw_band(axes, band, **options):
    """Shades between the "low" and "high" of {"x", "low", "high"} where both are known."""
    if not band:
        return
    x, low, high = (np.array(band[name], np.float64) for name in ("x", "low", "high"))
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        options = {"color": BLUE, "alpha": 0.18, "linewidth": 0} | options
        axes.fill_between(x[known], low[known], high[known], **options)


def _roc(figure, curve):
    points = _columns(curve, "false_positive_rate", "true_positive_rate")
    if points is None:
        return False
    axes = _unit_axes(figure, "False positive rate", "True positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="By chance")
    _draw_band(axes, curve.get("band"), label="95% band")
    axes.plot(*points, color=BLUE, label="This run")
    _legend_above(figure)
    return True


def _froc(figure, curve):
    points = _columns(curve, "false_positives", "sensitivity")
    if points is None:
        return False
    axes = figure.add_subplot(
        xlabel="False finds per case", ylabel="Share of the anomalies hit", ylim=(0, 1.02)
    )
    _draw_band(axes, curve.get("band"), label="95% band")
    axes.plot(*points, color=BLUE, drawstyle="steps-post", label="This run")
    axes.set_xlim(0, min(points[0].max(), 10) or 1)
    _legend_above(figure)
    return True


def _precision_recall(figure, curve):
    points = _columns(curve, "recall", "precision")
    if points is None:
        return False
    axes = _unit_axes(figure, "Recall (share of abnormal pixels found)", "Precision")
    _draw_band(axes, curve.get("band"), label="95% band")
    axes.plot(*points, color=BLUE, drawstyle="steps-post", label="This run")
    prevalence = curve.get("prevalence")
    if prevalence is not None:
        label = f"By chance ({prevalence:.3g})"
        axes.axhline(prevalence, color=GREY, linestyle="--", label=label)
    _legend_above(figure)
    return True


def _reliability(figure, curve):
    points = _columns(curve, "confidence", "accuracy", "count")
    if points is None or not (points[2] > 0).any():
        return False
    confidence, accuracy, count = points[:, points[2] > 0]
    grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
    axes = figure.add_subplot(grid[0], ylabel="Observed share", xlim=(0, 1), ylim=(0, 1.02))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="Perfectly calibrated")
    ends = _columns(curve, "confidence", "low", "high")
    if ends is not None:
        axes.vlines(*ends, color=BLUE, alpha=0.4, linewidth=3, label="95% interval")
    axes.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, label="This run")
    axes.tick_params(labelbottom=False)
    below = figure.add_subplot(grid[1], xlim=(0, 1), xlabel="Predicted probability", yscale="log")
    below.bar(confidence, count, width=0.03, color=BLUE)
    below.set_ylabel("Pixels")
    _legend_above(figure)
    return True


def _risk_coverage(figure, curve):
    points = _columns(curve, "coverage", "risk")
    if points is None:
        return False
    labels = "Coverage (share kept, the most certain first)", "Risk (mean error of the kept)"
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1))
    _draw_band(axes, curve.get("band"), label="95% band")
    axes.plot(*points, color=BLUE, label="This run")
    bounds = {"random": ("Random order", "--", GREY), "oracle": ("Perfect order", ":", VERMILION)}
    for name, (label, line, colour) in bounds.items():
        bound = _columns(curve, "coverage", name)
        if bound is not None:
            axes.plot(*bound, color=colour, linestyle=line, label=label)
    axes.set_ylim(bottom=0)
    _legend_above(figure)
    return True


def _score_distribution(figure, scores):
    groups = {
        "Normal": (_columns(scores, "normal"), BLUE, "-", 0.4),
        "Abnormal": (_columns(scores, "abnormal"), VERMILION, "--", 0.6),
    }
    groups = {label: group for label, group in groups.items() if group[0] is not None}
    if not groups:
        return False
    values = np.concatenate([group[0].ravel() for group in groups.values()])
    bins = np.histogram_bin_edges(values, bins=min(30, max(5, len(values) // 4)))
    axes = figure.add_subplot(xlabel="Image score", ylabel="Share of the group")
    for label, (found, colour, line, place) in groups.items():
        shares = np.histogram(found, bins)[0] / found.size
        options = {"color": colour, "linestyle": line, "linewidth": 1.5}
        axes.stairs(shares, bins, **options, label=f"{label} ({found.size})")
        axes.stairs(shares, bins, color=colour, alpha=0.2, fill=True)
        low, high = _wilson(shares, found.size)
        axes.vlines(bins[:-1] + place * np.diff(bins), low, high, color=colour, linewidth=1)
    if scores.get("threshold") is not None:
        axes.axvline(scores["threshold"], color=INK, linestyle=":", label="Threshold")
    _legend_above(figure)
    return True


def _wilson(share, count):
    """The 95% interval (low, high) of shares of `count` cases (Wilson 1927)."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) * z
    spread = spread / (1 + z**2 / count)
    return np.maximum(centre - spread, 0), centre + spread


def _legend_above(figure):
    # Above the axes it can never cover the data.
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)


def _unit_axes(figure, xlabel, ylabel):
    limits = {"xlim": (0, 1), "ylim": (0, 1.02)}
    return figure.add_subplot(xlabel=xlabel, ylabel=ylabel, **limits)


PLOTS = (
    Plot(
        "precision_recall",
        "Precision and recall",
        "Of the pixels called abnormal, how many are (precision), as more of the abnormal pixels"
        " are found (recall). The dashed line is what guessing reaches.",
        "pixel.ap",
        _precision_recall,
    ),
    Plot(
        "roc",
        "ROC",
        "Of the abnormal pixels, how many are found as more of the normal ones are marked by"
        " mistake. Where anomalies are rare this curve flatters: read it beside precision.",
        "pixel.auroc",
        _roc,
    ),
    Plot(
        "froc",
        "FROC",
        "Of the single anomalies, how many are hit, and how many false finds each case has.",
        "object.froc",
        _froc,
    ),
    Plot(
        "score_distribution",
        "Image scores",
        "The less the two groups overlap, the better images can be told apart. The threshold was"
        " chosen without these images. Upright lines are 95% intervals.",
        "image.auroc",
        _score_distribution,
    ),
    Plot(
        "reliability",
        "Reliability",
        "Of the pixels given a probability of 0.7, seven in ten should be abnormal: points below"
        " the diagonal claim too much, points above it too little.",
        "confidence.ece",
        _reliability,
    ),
    Plot(
        "risk_coverage",
        "Risk and coverage",
        "If the least certain pixels are set aside, do fewer errors remain? A useful uncertainty"
        " lies near the perfect order, a useless one near the random order.",
        "confidence.aurc",
        _risk_coverage,
    ),
    Plot(
        "training_curve",
        "Training",
        "The loss on synthetic anomalies, in the training images and, at each checkpoint, in"
        " held-out healthy ones: if the second rises, training learnt its images by heart. Neither"
        " says how well real anomalies are found.",
        "",
        _training_curve,
    ),
)
