"""`anyvit design`: a budget in, the shape of ViT for it out, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.fit import Seed, Threads
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyvit.deploy.designed import Design
    from anyvit.scaling.design.finding import Designed

Data = Annotated[
    str | None, typer.Argument(help="Labelled images, of any format that `fit` opens. [none: 224 px, 1,000 classes]")
]
Budget = Annotated[
    str, typer.Option(help="Bounds on latency, macs, params, size or memory: 'latency<=50ms, params<=10M'.")
]
Out = Annotated[str | None, typer.Option(help="The folder of the design; the same folder resumes. [runs/NAME-design]")]
ImageSize = Annotated[int | None, typer.Option(help="Pixels a side of what the model sees. [as the images are]")]
Method = Annotated[str, typer.Option(help="How shapes are judged: `anyvit list methods`.")]
Backend = Annotated[str, typer.Option(help="The runtime of the latencies, its precision after a colon.")]
Batch = Annotated[int, typer.Option(help="Images a call.")]
Epochs = Annotated[float | None, typer.Option(help="Of the trainings that a method makes. [what the method says]")]
Time = Annotated[str | None, typer.Option(help="Time for the search: 20m, 2h. It then ends with what it has.")]


def design(
    data: Data = None,
    *,
    budget: Budget,
    out: Out = None,
    image_size: ImageSize = None,
    method: Method = "score",
    backend: Backend = "torch",
    batch: Batch = 1,
    threads: Threads = 1,
    epochs: Epochs = None,
    time: Time = None,
    seed: Seed = 0,
    json: JsonOption = False,
) -> None:
    """Find the shape of ViT that is worth most inside a budget on this machine, before it is trained."""
    import anyvit

    with ShowProgress() as progress:
        found = anyvit.design(
            data,
            budget=budget,
            out=out,
            image_size=image_size,
            method=method,
            backend=backend,
            batch=batch,
            threads=threads,
            epochs=epochs,
            time=time,
            seed=seed,
            progress=progress,
        )
    if json:
        show_json(found)
    else:
        _show(found)


def _show(design: Design) -> None:
    """The ranking, what everybody's models would do, the promise, and what to type next."""
    from anyvit.costs.budget import format_cost

    document, chosen = design.document, design.chosen
    inside = [each for each in design.relatives if each.fits]
    _show_models([*design.ranking, *inside], chosen)
    say(f"* chosen: {chosen.name}, the best by {document['measure']}")
    if design.relatives and not inside:
        say("no well-known ViT of timm is inside this budget")
    for bound in document["promise"]["bounds"]:
        words = "kept" if bound["met"] else "missed"
        say(f"{words}: {bound['bound']}, measured again: {format_cost(bound['cost'], bound['value'])}")
    say(f"{design.folder / 'report.html'} tells the whole story; anyvit fit DATA --model {design.folder} trains it")


def _show_models(some: Sequence[Designed], chosen: Designed) -> None:
    from anyvit.costs.budget import format_cost

    costs = list(chosen.costs)
    rows = []
    for each in some:
        worth = "" if each.worth is None else f"{each.worth:.3f} ± {each.spread:.3f}"
        figures = [format_cost(cost, each.costs[cost]) if cost in each.costs else "" for cost in costs]
        rows.append([each.name + (" *" if each.name == chosen.name else ""), worth, *figures])
    columns = ["model", "worth", *costs]
    show_table(columns, rows, right=columns[1:])
