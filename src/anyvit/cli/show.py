"""How answers look in a terminal: tables, errors, JSON. Without colour or width they still read well."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from anyvit.deploy.bundle import Bundle
    from anyvit.scaling.candidate import Result

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

WIDTH_OF_A_FILE = 200
"""Columns of a table that no terminal limits."""

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(error: Exception) -> None:
    """One line on standard error."""
    errors.print("error:", style="bold red", end=" ")
    errors.print(str(error), markup=False)


def say(text: str) -> None:
    """A line on standard output, as it is."""
    console.print(text, markup=False)


def show_json(answer: Any) -> None:
    """An answer as JSON: dataclasses become objects."""
    json.dump(answer, sys.stdout, default=_plain, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A plain table; the columns in `right` are set flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # text, so that nothing in it is taken for markup
    width = None if console.is_terminal else WIDTH_OF_A_FILE
    Console(highlight=False, width=width).print(table)


def show_results(results: Sequence[Result], *, chosen: str | None = None) -> None:
    """Candidates with their figures, the chosen one marked."""
    from anyvit.costs.budget import format_cost
    from anyvit.scaling.candidate import costs_of

    costs = costs_of(results)
    scored = any(result.accuracy is not None for result in results)
    columns = ["candidate", *(["accuracy"] if scored else []), *(cost.replace("_", " ") for cost in costs)]
    rows = []
    for result in results:
        figures = [format_cost(cost, result.costs[cost]) if cost in result.costs else "" for cost in costs]
        accuracy = ["" if result.accuracy is None else f"{result.accuracy:.1%}"] if scored else []
        mark = " *" if result.id == chosen else ""
        rows.append([result.id + mark + (" (unstable)" if result.unstable else ""), *accuracy, *figures])
    show_table(columns, rows, right=columns[1:])


def show_bundle(bundle: Bundle) -> None:
    """The answer of a run: all candidates, the promise, and where it lies."""
    from anyvit.costs.budget import format_cost

    document = bundle.document
    show_results(bundle.results, chosen=bundle.chosen.id)
    say(f"* chosen: {bundle.chosen.id}; accuracy here is that on the validation split")
    for finding in document["promise"]["bounds"]:
        words = "kept" if finding["met"] else "missed"
        share = f", {finding['escalated']:.1%} of the images going on" if "escalated" in finding else ""
        say(f"{words}: {finding['bound']}, measured again: {format_cost(finding['cost'], finding['value'])}{share}")
    if test := document["test"]:
        low, high = test["interval"]
        say(f"test accuracy {test['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}, {test['count']} images)")
    say(f"{bundle.folder / 'report.html'} tells the whole story")
