"""`anyvit measure`: what a model costs here."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json, show_results

Model = Annotated[str, typer.Argument(help="A registered name, ours or timm's, or the folder of a bundle.")]
Weights = Annotated[str | None, typer.Option(help="A file of weights, or `pretrained`.")]
Batch = Annotated[int, typer.Option(help="Images a call.")]
Threads = Annotated[int, typer.Option(help="Threads of the model.")]


def measure(
    model: Model, weights: Weights = None, batch: Batch = 1, threads: Threads = 1, json: JsonOption = False
) -> None:
    """Parameters, MACs, size, memory, latency and throughput on this machine. A bundle's figures are renewed."""
    import anyvit

    with ShowProgress() as progress:
        measurement = anyvit.measure(model, weights=weights, batch=batch, threads=threads, progress=progress)
    if json:
        show_json(measurement)
        return
    conditions = measurement.conditions
    say(
        f"{measurement.model} on {measurement.device}\n"
        f"{conditions.image_size} px, batch {conditions.batch}, threads {conditions.threads}"
    )
    show_results(measurement.results)
