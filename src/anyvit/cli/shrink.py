"""`anyvit shrink`: a trained model and a budget in, its best cheaper form out."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.fit import Anyway, Backends, Out, Threads
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import show_bundle

Model = Annotated[str, typer.Argument(help="A model of timm or ours, or the folder of a bundle.")]
Data = Annotated[str, typer.Option(help="Labelled images of the classes that it tells: whatever `fit` opens.")]
Budget = Annotated[str, typer.Option(help="Bounds on costs and accuracy: 'latency<=25ms, accuracy>=0.92'.")]
Weights = Annotated[str | None, typer.Option(help="A file of trained weights, or `pretrained`. [those of the bundle]")]
Levers = Annotated[
    str, typer.Option(help="Ways to get cheaper, separated by commas; `auto`: all that go with it; `none`.")
]
Time = Annotated[str | None, typer.Option(help="Time for the whole run: 20m, 2h. The search ends early then.")]
Tune = Annotated[str | None, typer.Option(help="Time, of that, to train the best candidate further: 5m.")]
Seed = Annotated[int, typer.Option(help="Of the split of the images.")]


def shrink(
    model: Model,
    data: Data,
    budget: Budget,
    out: Out = None,
    weights: Weights = None,
    levers: Levers = "auto",
    backends: Backends = "auto",
    time: Time = None,
    tune: Tune = None,
    seed: Seed = 0,
    threads: Threads = 1,
    anyway: Anyway = False,
) -> None:
    """Measure every cheaper form of a trained model on this machine, and keep the best one inside the budget."""
    import anyvit

    with ShowProgress() as progress:
        bundle = anyvit.shrink(
            model,
            data=data,
            budget=budget,
            out=out,
            weights=weights,
            levers=levers,
            backends=backends,
            time=time,
            tune=tune,
            seed=seed,
            threads=threads,
            anyway=anyway,
            progress=progress,
        )
    show_bundle(bundle)
