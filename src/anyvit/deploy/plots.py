"""The pictures of the report, as SVG that takes its colours from the page and so follows its light or dark scheme.

Figures are built object by object: pyplot keeps global state that belongs to the user.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from anyvit.costs.budget import Bound, format_cost
from anyvit.scaling.candidate import Result

# Matplotlib draws in these stand-ins, the page replaces them by its own colours of the same name.
INK, MUTED, GRID, ACCENT, BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", BAD: "bad"}
_SIZE = (4.6, 3.3)  # inches; small, so that the type stays readable on a phone
_SMALL = 9
_STEPS = [1, 2, 2.5, 5, 10]  # between ticks


def pareto_plot(results: Sequence[Result], front: Sequence[str], chosen: Result, cost: str, bound: Bound | None) -> str:
    """Accuracy in validation against a cost: every candidate, the front as a line, the chosen one, and the budget."""
    scored = [result for result in results if result.accuracy is not None]
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = _axes(figure.subplots(), xlabel=_COST_LABELS.get(cost, cost), ylabel="accuracy in validation")
    axes.scatter(*_points(scored, cost), s=26, color=MUTED, alpha=0.55, zorder=2)
    on_front = sorted((result for result in scored if result.id in front), key=lambda result: result.costs[cost])
    axes.plot(*_points(on_front, cost), color=ACCENT, linewidth=1.6, marker="o", markersize=4.5, zorder=3)
    if chosen.accuracy is not None:
        axes.scatter(*_points([chosen], cost), s=150, color=ACCENT, edgecolor=INK, linewidth=1.4, marker="*", zorder=5)
        _label_point(axes, chosen.id, chosen.costs[cost], chosen.accuracy, rising=cost != "throughput")
    if bound:
        _budget_line(axes, bound)
    axes.margins(0.09, 0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_cost(cost, value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    return _svg(figure, "pareto", f"Accuracy of {len(scored)} candidates against {cost}; {chosen.id} is chosen.")


def training_plot(history: Sequence[Mapping[str, float]]) -> str | None:
    """Accuracies in validation and the loss, over the epochs; None where nothing was noted."""
    names = list(dict.fromkeys(name for entry in history for name in entry if name.startswith("accuracy/")))
    losses = _series(history, "loss")
    if not names and not losses[0]:
        return None
    figure = Figure(figsize=_SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _axes(upper, ylabel="accuracy in validation")
    _axes(lower, xlabel="epoch", ylabel="loss")
    upper.tick_params(labelbottom=False)
    for index, name in enumerate(names):
        style = ("-", "--", ":")[index % 3]
        upper.plot(*_series(history, name), color=ACCENT, linestyle=style, label=name.removeprefix("accuracy/"))
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    if names:
        upper.legend(loc="best", fontsize=_SMALL, frameon=False, labelcolor=INK)
    lower.plot(*losses, color=MUTED)
    return _svg(figure, "training", "Accuracy in validation and loss over the epochs of the training.")


_COST_LABELS = {
    "latency": "latency of one image",
    "latency_p95": "latency, 95th percentile",
    "latency_e2e": "latency from file to label",
    "memory": "peak memory",
    "size": "size of the weights",
    "params": "parameters",
    "macs": "multiply-accumulates of one image",
    "throughput": "images a second",
}


def _points(results: Sequence[Result], cost: str) -> tuple[list[float], list[float]]:
    return [result.costs[cost] for result in results], [result.accuracy or 0.0 for result in results]


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in history if entry.get(name) is not None]
    return [entry["epoch"] for entry in entries], [entry[name] for entry in entries]


def _label_point(axes: Axes, text: str, x: float, y: float, *, rising: bool) -> None:
    """Write beside a point of the front, on the side of the middle and off the line."""
    rightwards = x < sum(axes.get_xlim()) / 2
    upwards = rightwards != rising
    label = axes.annotate(
        text,
        (x, y),
        xytext=(8 if rightwards else -8, 8 if upwards else -8),
        textcoords="offset points",
        ha="left" if rightwards else "right",
        va="bottom" if upwards else "top",
        fontsize=_SMALL + 1,
        fontweight="bold",
        color=INK,
        zorder=6,
        parse_math=False,
    )
    label.set_gid("chosen")  # the page gives it a halo


def _budget_line(axes: Axes, bound: Bound) -> None:
    """The bound as a line with the forbidden side shaded; where it is far off, only its direction."""
    left, right = axes.get_xlim()
    if not left - 0.6 * (right - left) <= bound.value <= right + 0.6 * (right - left):
        outside = "right" if bound.value > right else "left"
        text = f"{bound} →" if outside == "right" else f"← {bound}"
        place = 0.98 if outside == "right" else 0.02
        axes.text(place, 0.03, text, transform=axes.transAxes, ha=outside, color=BAD, fontsize=_SMALL, parse_math=False)
        return
    axes.axvline(bound.value, color=BAD, linestyle=(0, (4, 3)), linewidth=1.4, zorder=1)
    far = (
        max(right, bound.value) + (right - left) if bound.operator == "<=" else min(left, bound.value) - (right - left)
    )
    limits = min(left, bound.value), max(right, bound.value)
    axes.axvspan(*sorted((bound.value, far)), color=BAD, alpha=0.07, linewidth=0, zorder=0)
    pad = 0.06 * (limits[1] - limits[0])
    axes.set_xlim(limits[0] - pad, limits[1] + pad)
    inner = "right" if bound.operator == "<=" else "left"
    axes.annotate(
        str(bound),
        (bound.value, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if inner == "right" else 5, 0),
        textcoords="offset points",
        ha=inner,
        color=BAD,
        fontsize=_SMALL,
        parse_math=False,
    )


def _axes(axes: Axes, xlabel: str = "", ylabel: str = "") -> Axes:
    axes.patch.set_visible(False)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=_SMALL + 1)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=_SMALL + 1)
    axes.tick_params(colors=MUTED, labelsize=_SMALL, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    return axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element that fills the width it is given."""
    figure.patch.set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # ids differ between the pictures
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in _NAMES.items():
        text = text.replace(stand_in, f"var(--{colour})")
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" ?', f'<svg role="img" aria-label="{label}" \\1', text, count=1)
