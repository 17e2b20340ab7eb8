"""`anyvit list`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.show import JsonOption, show_json, show_table

Kind = Annotated[str | None, typer.Argument(help="systems, models, levers, backends, objectives or transports. [all]")]


def list(kind: Kind = None, json: JsonOption = False) -> None:
    """Systems, models, levers, backends, objectives, methods of design and transports, one line each."""
    import anyvit

    entries = anyvit.list(kind)
    if json:
        show_json(entries)
    else:
        show_table(("kind", "name", "what it is"), [(entry.kind, entry.name, entry.summary) for entry in entries])
