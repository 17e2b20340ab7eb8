"""The pictures of the report, as SVG that takes its colours from the page and so follows its light or dark scheme.

Figures are built object by object: pyplot keeps global state that belongs to the user.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from anyvit.costs.budget import Bound, Budget, format_cost
from anyvit.deploy.search_report import CASCADE, SEVERAL, UNSHRUNK, family, runtime
from anyvit.scaling.candidate import Result

# Matplotlib draws in these stand-ins, the page replaces them by its own colours of the same name.
INK, MUTED, GRID, ACCENT, BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
FAMILIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", BAD: "bad"}
_NAMES |= {colour: f"family{index}" for index, colour in enumerate(FAMILIES)}
SIZE = (4.6, 3.3)  # inches; small, so that the type stays readable on a phone
SMALL = 9
STEPS = [1, 2, 2.5, 5, 10]  # between ticks
WIDE = 4  # from this ratio of the dearest to the cheapest on, the axis of costs is logarithmic

# The marks of a search. A lever has a colour and a shape, a runtime a filling: nothing is told by colour alone.
_MARKERS = ("s", "^", "D", "v", "p", "h")
_FILLINGS = ("full", "none", "left", "bottom", "right", "top")
_FIXED: Mapping[str, dict[str, Any]] = {
    UNSHRUNK: {"marker": "o", "color": MUTED},
    SEVERAL: {"marker": "P", "color": INK},
    CASCADE: {"marker": "X", "color": INK},
}
_MARK: dict[str, Any] = {"markersize": 6.5, "markeredgewidth": 1.1, "markerfacecoloralt": "none", "linestyle": ""}
_FAINT: dict[str, Any] = {"markersize": 4.5, "alpha": 0.4}
_RING: dict[str, Any] = {"marker": "o", "fillstyle": "none", "color": INK, "markeredgewidth": 1.4, "linestyle": ""}


def pareto_plot(results: Sequence[Result], front: Sequence[str], chosen: Result, cost: str, bound: Bound | None) -> str:
    """Accuracy in validation against a cost: every candidate, the front as a line, the chosen one, and the budget."""
    scored = [result for result in results if result.accuracy is not None]
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = styled_axes(figure.subplots(), xlabel=COST_LABELS.get(cost, cost), ylabel="accuracy in validation")
    axes.scatter(*_points(scored, cost), s=26, color=MUTED, alpha=0.55, zorder=2)
    on_front = sorted((result for result in scored if result.id in front), key=lambda result: result.costs[cost])
    axes.plot(*_points(on_front, cost), color=ACCENT, linewidth=1.6, marker="o", markersize=4.5, zorder=3)
    if chosen.accuracy is not None:
        axes.scatter(*_points([chosen], cost), s=150, color=ACCENT, edgecolor=INK, linewidth=1.4, marker="*", zorder=5)
        _label_point(axes, chosen.id, chosen.costs[cost], chosen.accuracy, rising=cost != "throughput")
    if bound:
        budget_line(axes, bound)
    _graduate(axes, cost)
    return svg_of(figure, "pareto", f"Accuracy of {len(scored)} candidates against {cost}; {chosen.id} is chosen.")


def search_plot(
    kept: Sequence[Result], left: Sequence[Result], front: Sequence[str], chosen: Result, cost: str, budget: Budget
) -> str:
    """Accuracy against a cost after a search: what each candidate is made with, the front, the chosen one, the budget.

    Shape and colour of a mark tell the lever, its filling the runtime: without colour, nothing is lost.

    Args:
        kept: Candidates with their accuracy in validation.
        left: Others that were tried, drawn faint.
        front: Ids of those that no other one beats in both.
        chosen: The one with a ring.
        cost: The horizontal axis.
        budget: Its bounds on this cost and on accuracy are drawn.
    """
    scored = [result for result in kept if result.accuracy is not None]
    looks = _Looks.of([*scored, *left])
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.55 + 0.1 * len(looks.families)), layout="constrained")
    axes = styled_axes(figure.subplots(), xlabel=COST_LABELS.get(cost, cost), ylabel="accuracy in validation")
    costs = [result.costs[cost] for result in (*scored, *left)]
    if costs and max(costs) > WIDE * min(costs):
        axes.set_xscale("log")
    for result in left:
        axes.plot(*_points([result], cost), **looks(result) | _FAINT, zorder=2)
    on_front = sorted((result for result in scored if result.id in front), key=lambda result: result.costs[cost])
    axes.plot(*_points(on_front, cost), color=INK, linewidth=1, alpha=0.6, zorder=3)
    for result in scored:
        axes.plot(*_points([result], cost), **looks(result), zorder=4)
    if chosen.accuracy is not None:
        axes.plot(*_points([chosen], cost), **_RING, markersize=13, zorder=5)
    for bound in budget.bounds:
        if bound.cost == cost:
            budget_line(axes, bound)
        elif bound.cost == "accuracy":
            _accuracy_line(axes, bound)
    _graduate(axes, cost)
    _legends(figure, looks, faint=bool(left))
    words = f"Accuracy of {len(scored)} candidates kept and {len(left)} left against {cost}; {chosen.id} is chosen."
    return svg_of(figure, "pareto", words)


def training_plot(history: Sequence[Mapping[str, float]]) -> str | None:
    """Accuracies in validation and the loss, over the epochs; None where nothing was noted."""
    names = list(dict.fromkeys(name for entry in history for name in entry if name.startswith("accuracy/")))
    losses = _series(history, "loss")
    if not names and not losses[0]:
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    styled_axes(upper, ylabel="accuracy in validation")
    styled_axes(lower, xlabel="epoch", ylabel="loss")
    upper.tick_params(labelbottom=False)
    for index, name in enumerate(names):
        style = ("-", "--", ":")[index % 3]
        upper.plot(*_series(history, name), color=ACCENT, linestyle=style, label=name.removeprefix("accuracy/"))
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    if names:
        upper.legend(loc="best", fontsize=SMALL, frameon=False, labelcolor=INK)
    lower.plot(*losses, color=MUTED)
    return svg_of(figure, "training", "Accuracy in validation and loss over the epochs of the training.")


COST_LABELS = {
    "latency": "latency of one image",
    "latency_p95": "latency, 95th percentile",
    "latency_expected": "expected latency of one image",
    "latency_e2e": "latency from file to label",
    "memory": "peak memory",
    "size": "size of the weights",
    "params": "parameters",
    "macs": "multiply-accumulates of one image",
    "throughput": "images a second",
}


@dataclass(frozen=True, slots=True)
class _Looks:
    """How candidates are marked, by what they are made with and by their runtime."""

    families: Mapping[str, dict[str, Any]]
    fillings: Mapping[str, str]

    @classmethod
    def of(cls, results: Iterable[Result]) -> _Looks:
        """Levers get their marks by the alphabet, for none is known here by name."""
        present, runtimes = {family(r) for r in results}, sorted({runtime(r) for r in results})
        levers = sorted(present - _FIXED.keys())
        marks = ({"marker": marker, "color": colour} for marker, colour in cycle(zip(_MARKERS, FAMILIES, strict=True)))
        families = {UNSHRUNK: _FIXED[UNSHRUNK], **dict(zip(levers, marks, strict=False)), **_FIXED}
        known = {name: look for name, look in families.items() if name in present}
        return cls(known, dict(zip(runtimes, cycle(_FILLINGS), strict=False)))

    def __call__(self, result: Result) -> dict[str, Any]:
        return {**_MARK, **self.families[family(result)], "fillstyle": self.fillings[runtime(result)]}


def _legends(figure: Figure, looks: _Looks, *, faint: bool) -> None:
    """Below the axes: on the left what shapes say, on the right what fillings do."""
    shapes = [Line2D([], [], label=name, **_MARK | look) for name, look in looks.families.items()]
    if faint:
        shapes.append(Line2D([], [], label="tried and left", **_MARK | _FIXED[UNSHRUNK] | _FAINT))
    shapes.append(Line2D([], [], label="chosen", **_RING, markersize=9))
    fillings = [
        Line2D([], [], label=name, **_MARK | _FIXED[UNSHRUNK] | {"fillstyle": filling})
        for name, filling in looks.fillings.items()
    ]
    style: dict[str, Any] = {"alignment": "left", "fontsize": SMALL, "frameon": False, "labelcolor": INK}
    style |= {"title_fontproperties": {"size": SMALL}, "handletextpad": 0.2, "columnspacing": 1}
    for legend in (
        figure.legend(handles=shapes, title="made with", loc="outside lower left", ncols=2, **style),
        figure.legend(handles=fillings, title="runtime", loc="outside lower right", **style),
    ):
        legend.get_title().set_color(MUTED)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _graduate(axes: Axes, cost: str) -> None:
    """Ticks that say costs and accuracies as people do."""
    axes.margins(0.09, 0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_cost(cost, value)))
    logarithmic = axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))


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
        fontsize=SMALL + 1,
        fontweight="bold",
        color=INK,
        zorder=6,
        parse_math=False,
    )
    label.set_gid("chosen")  # the page gives it a halo


def budget_line(axes: Axes, bound: Bound) -> None:
    """The bound as a line with the forbidden side shaded; where it is far off, only its direction."""
    axes.get_xlim()  # has the axes look at what was drawn
    shares = axes.transScale + axes.transLimits  # where a value is between the left end, 0, and the right one, 1

    def value_at(share: float) -> float:
        return float(shares.inverted().transform((share, 0))[0])

    place = float(shares.transform((bound.value, axes.get_ylim()[0]))[0])
    if not -0.6 <= place <= 1.6:
        outside = "right" if place > 1 else "left"
        text = f"{bound} →" if outside == "right" else f"← {bound}"
        at = 0.98 if outside == "right" else 0.02
        axes.text(at, 0.03, text, transform=axes.transAxes, ha=outside, color=BAD, fontsize=SMALL, parse_math=False)
        return
    axes.axvline(bound.value, color=BAD, linestyle=(0, (4, 3)), linewidth=1.4, zorder=1)
    low, high = min(0.0, place), max(1.0, place)
    pad = 0.06 * (high - low)
    limits = value_at(low - pad), value_at(high + pad)
    far = limits[1] if bound.operator == "<=" else limits[0]
    axes.axvspan(*sorted((bound.value, far)), color=BAD, alpha=0.07, linewidth=0, zorder=0)
    axes.set_xlim(*limits)
    inner = "right" if bound.operator == "<=" else "left"
    axes.annotate(
        str(bound),
        (bound.value, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if inner == "right" else 5, 0),
        textcoords="offset points",
        ha=inner,
        color=BAD,
        fontsize=SMALL,
        parse_math=False,
    )


def _accuracy_line(axes: Axes, bound: Bound) -> None:
    """The accuracy asked for, where it is not far off what is drawn."""
    low, high = axes.get_ylim()
    if low - (high - low) / 2 <= bound.value <= high + (high - low) / 2:
        axes.axhline(bound.value, color=BAD, linestyle=(0, (1, 2)), linewidth=1.4, zorder=1)
        axes.annotate(
            str(bound),
            (0.99, bound.value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=BAD,
            fontsize=SMALL,
            parse_math=False,
        )


def styled_axes(axes: Axes, xlabel: str = "", ylabel: str = "") -> Axes:
    """`axes` in the style of a page, with labels."""
    axes.patch.set_visible(False)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=SMALL + 1)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=SMALL + 1)
    axes.tick_params(colors=MUTED, labelsize=SMALL, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    return axes


def svg_of(figure: Figure, name: str, description: str) -> str:
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
