"""`anyvit measure`: what a model costs here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json, show_results, show_table

if TYPE_CHECKING:
    from anyvit.scaling.spread.boards import CostTable

Model = Annotated[str, typer.Argument(help="A registered name, ours or timm's, or the folder of a bundle.")]
Weights = Annotated[str | None, typer.Option(help="A file of weights, or `pretrained`.")]
Backends = Annotated[str, typer.Option(help="Runtimes to try on a name, separated by commas; `auto`: all installed.")]
Data = Annotated[str | None, typer.Option(help="Labelled images to measure the accuracies of a bundle on as well.")]
Batch = Annotated[int, typer.Option(help="Images a call.")]
Threads = Annotated[int, typer.Option(help="Threads of the model.")]
TableFile = Annotated[
    str | None, typer.Option(help="Measure the parts that boards may take instead, and write them to this file.")
]


def measure(
    model: Model,
    weights: Weights = None,
    backends: Backends = "auto",
    data: Data = None,
    batch: Batch = 1,
    threads: Threads = 1,
    cost_table: TableFile = None,
    json: JsonOption = False,
) -> None:
    """Parameters, MACs, size, memory, latency and throughput on this machine. A bundle's figures are renewed."""
    import anyvit

    with ShowProgress() as progress:
        measurement = anyvit.measure(
            model,
            weights=weights,
            backends=backends,
            data=data,
            batch=batch,
            threads=threads,
            cost_table=cost_table,
            progress=progress,
        )
    if json:
        show_json(measurement)
        return
    conditions = measurement.conditions
    say(
        f"{measurement.model} on {measurement.device}\n"
        f"{conditions.image_size} px, batch {conditions.batch}, threads {conditions.threads}"
    )
    if measurement.cost_table:
        _show_costs(measurement.cost_table)
        say(f"written to {cost_table}: name it as cost_table in devices.yaml")
    else:
        show_results(measurement.results)
    for note in measurement.notes:
        say(f"note: {note}")


def _show_costs(table: CostTable) -> None:
    """Seconds by number of groups, or heads, a column a mode; the hub's own work is that of no groups."""
    from anyvit.costs.budget import format_cost

    modes = {mode: {**by_count, **_at_zero(table, mode)} for mode, by_count in table.seconds.items()}
    unit = "heads" if "heads" in modes else "groups"
    titles = {"hub": "trunk on the hub", "boards": "trunk on the boards", "heads": "sub-model"}
    counts = sorted({count for by_count in modes.values() for count in by_count})
    rows = [
        (str(count) if count else "the hub's own", *(format_cost("latency", each[count]) for each in modes.values()))
        for count in counts
    ]
    columns = [titles[mode] for mode in modes]
    show_table((unit, *columns), rows, right=columns)


def _at_zero(table: CostTable, mode: str) -> dict[int, float]:
    return {0: table.hub_s[mode]} if mode in table.hub_s else {}
