"""The report of a design: what was chosen from what, what shapes around it cost, what well-known models would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from anyvit.costs.budget import Bound, Budget, format_cost
from anyvit.deploy.designed import Design
from anyvit.deploy.plots import (
    ACCENT,
    BAD,
    COST_LABELS,
    INK,
    MUTED,
    SIZE,
    SMALL,
    STEPS,
    budget_line,
    styled_axes,
    svg_of,
)
from anyvit.deploy.report import REPORT, write_page
from anyvit.scaling.design.finding import Designed

COSTS = ("latency", "macs", "params", "size", "memory")


def write_design_report(design: Design) -> Path:
    """Write `report.html` beside `design.json`."""
    document = design.document
    bound = next(bound for bound in Budget.parse(document["run"]["budget"]).bounds if bound.cost == document["binding"])
    surface = document["surface"]
    content = {
        "document": document,
        "budget": Budget.parse(document["run"]["budget"]),
        "chosen": design.chosen,
        "ranking": design.ranking,
        "relatives": design.relatives,
        "costs": [cost for cost in COSTS if cost in design.chosen.costs],
        "steps": _columns(document["path"]),
        "worths": Markup(worth_plot(design, bound)),
        "surface": surface and Markup(surface_plot(surface, design, bound)),
        "beaten_by": _ahead(design),
    }
    write_page(design.folder / REPORT, "design.html.j2", content)
    return design.folder / REPORT


def _columns(path: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for step in path for name in step))


def _ahead(design: Design) -> Designed | None:
    """The well-known model inside the budget that is worth most, where there is one."""
    inside = [each for each in design.relatives if each.fits and each.worth is not None]
    return max(inside, key=lambda each: each.worth or 0.0, default=None)


def worth_plot(design: Design, bound: Bound) -> str:
    """What shapes are held to be worth, with its standard error, against what they cost; and the budget."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = styled_axes(figure.subplots(), COST_LABELS.get(bound.cost, bound.cost), design.document["measure"])
    groups = (
        ("well-known models", [d for d in design.relatives if d.worth is not None], MUTED, "s"),
        ("designed", [d for d in design.ranking if d.name != design.chosen.name], ACCENT, "o"),
        ("chosen", [design.chosen], INK, "*"),
    )
    for label, some, colour, marker in groups:
        if some:
            axes.errorbar(
                [each.costs[bound.cost] for each in some],
                [each.worth or 0.0 for each in some],
                yerr=[each.spread for each in some],
                fmt=marker,
                color=colour,
                markersize=10 if marker == "*" else 5,
                elinewidth=1,
                label=label,
            )
    budget_line(axes, bound)
    axes.margins(0.09, 0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_cost(bound.cost, value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.legend(loc="best", fontsize=SMALL, frameon=False, labelcolor=INK)
    words = f"{len(design.ranking)} designed shapes and what they are worth against {bound.cost}."
    return svg_of(figure, "worths", words)


def surface_plot(surface: dict[str, Any], design: Design, bound: Bound) -> str:
    """Lines of equal cost over width and depth, the budget among them, and the chosen shape."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = styled_axes(figure.subplots(), "channels", "blocks")
    values = np.array(surface["values"])
    grid = np.meshgrid(surface["widths"], surface["depths"])
    levels = np.geomspace(values.min(), values.max(), 9)[1:-1]
    lines = axes.contour(*grid, values, levels=levels, colors=[MUTED], linewidths=0.9)
    axes.clabel(lines, fmt=lambda value: format_cost(bound.cost, value), fontsize=SMALL - 1, colors=[MUTED])
    if values.min() < bound.value < values.max():
        axes.contour(*grid, values, levels=[bound.value], colors=[BAD], linewidths=1.6, linestyles="dashed")
    shape = design.form.arguments
    axes.plot([shape["heads"] * shape["head_dim"]], [shape["depth"]], marker="*", markersize=12, color=ACCENT)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=True))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=True))
    words = f"Predicted {bound.cost} by depth and width; the dashed line is the budget, the star the chosen shape."
    return svg_of(figure, "surface", words)
