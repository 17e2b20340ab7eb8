"""`anyvit spread`: one model over many devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.predict import Folder
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json, show_table

if TYPE_CHECKING:
    from anyvit.scaling.spread.plan import Plan
    from anyvit.scaling.spread.vote import Missing

Devices = Annotated[str, typer.Option(help="The file that describes the boards, devices.yaml.")]
Out = Annotated[str | None, typer.Option(help="The folder for the plan and the parts. [only the plan is shown]")]
By = Annotated[str, typer.Option(help="What is dealt: attention groups (of an HSViT), or classes.")]
Data = Annotated[
    str | None, typer.Option(help="Labelled images to score (and, by classes, train) on. [those of the run]")
]
Trunk = Annotated[str, typer.Option(help="Convolutions of an HSViT: on the hub, on all boards, or auto: the sooner.")]
Epochs = Annotated[float | None, typer.Option(help="By classes: how often training sees each image. [the recipe's]")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="By classes: a name, or a JSON or TOML file. [fine-tune]")
]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Threads = Annotated[int, typer.Option(help="Threads of this machine, by which boards without a table are judged.")]


def spread(
    bundle: Folder,
    devices: Devices,
    out: Out = None,
    by: By = "groups",
    data: Data = None,
    trunk: Trunk = "auto",
    epochs: Epochs = None,
    recipe: RecipeOption = None,
    seed: Seed = 0,
    threads: Threads = 1,
    json: JsonOption = False,
) -> None:
    """Plan a model over the boards of devices.yaml, and write the part of each."""
    import anyvit

    with ShowProgress() as progress:
        done = anyvit.spread(
            bundle,
            devices=devices,
            out=out,
            by=by,
            data=data,
            trunk=trunk,
            epochs=epochs,
            recipe=recipe,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if json:
        show_json(done)
        return
    _show_plan(done.plan)
    _show_known(done.known)
    for note in done.notes:
        say(f"note: {note}")
    if out:
        say(f"{out} holds the plan, the hub's part, and part-1.safetensors and on, one a board in the order above")


def _show_plan(plan: Plan) -> None:
    from anyvit.costs.budget import format_cost
    from anyvit.scaling.spread.plan import COLUMNS

    show_table(COLUMNS, plan.table(), right=COLUMNS[3:])
    if plan.by == "groups":
        say(f"trunk       on the {plan.trunk}")
    whole, own = (format_cost("latency", seconds) for seconds in (plan.latency_s, plan.hub_s))
    say(f"latency     {whole}, of which {own} on the hub")
    say(f"bottleneck  {plan.bottleneck}")
    say(f"throughput  {format_cost('throughput', plan.throughput)}, where images follow each other")
    say(f"payload     {plan.bytes_on_wire} bytes an image")


MOST_ROWS = 9
"""Numbers of missing parts that are shown; the rest are in --json."""


def _show_known(known: Sequence[Missing]) -> None:
    if not known:
        return
    rows = [(str(each.missing), f"{each.mean:.1%}", f"{each.worst:.1%}", str(each.sets)) for each in known[:MOST_ROWS]]
    say("")
    show_table(("missing", "accuracy", "worst", "sets"), rows, right=("accuracy", "worst", "sets"))
