"""`anyvit fit`: labelled images and a budget in, a trained ViT that meets it out."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Annotated

import typer

from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import show_bundle
from anyvit.protocols import silent

Data = Annotated[
    str,
    typer.Argument(
        help="A folder per class, parquet files, a CSV of path,label, `digits`, or a torchvision data set by name."
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="Bounds on costs and accuracy: 'latency<=50ms, size<=20MB, accuracy>=0.9'.")
]
Out = Annotated[str | None, typer.Option(help="The folder of the bundle; the same folder resumes. [runs/NAME]")]
Model = Annotated[
    str | None, typer.Option(help="Ours, timm's, a design's folder, or `auto`: designed first. [a preset]")
]
Weights = Annotated[str | None, typer.Option(help="Start from a file of weights, or from `pretrained`.")]
Levers = Annotated[
    str, typer.Option(help="Ways to make the model smaller, separated by commas; `auto` (heads or groups), or `none`.")
]
Backends = Annotated[str, typer.Option(help="Runtimes to try, separated by commas; `auto` is all installed.")]
Epochs = Annotated[float | None, typer.Option(help="How often training sees each image. [set by the recipe]")]
Time = Annotated[str | None, typer.Option(help="Time for the whole run, search included: 90s, 20m, 2h.")]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Threads = Annotated[int, typer.Option(help="Threads of the model when it answers; training uses all cores.")]
Spread = Annotated[str | None, typer.Option(help="Train an HSViT in torchrun's processes: groups[:hub][,data=ROWS].")]
Recipe = Annotated[str | None, typer.Option(help="A recipe by name, or a JSON or TOML file. [by size of data]")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Train even where no candidate meets the budget.")]


def fit(
    data: Data,
    budget: Budget = None,
    out: Out = None,
    model: Model = None,
    weights: Weights = None,
    levers: Levers = "auto",
    backends: Backends = "torch",
    epochs: Epochs = None,
    time: Time = None,
    seed: Seed = 0,
    threads: Threads = 1,
    spread: Spread = None,
    recipe: Recipe = None,
    anyway: Anyway = False,
) -> None:
    """Train once, measure every subnetwork on this machine, and keep the best one inside the budget."""
    import anyvit

    follows = spread is not None and os.environ.get("RANK", "0") != "0"  # the first process speaks for all
    with nullcontext(silent) if follows else ShowProgress() as progress:
        bundle = anyvit.fit(
            data,
            budget=budget,
            out=out,
            model=model,
            weights=weights,
            levers=levers,
            backends=backends,
            epochs=epochs,
            time=time,
            seed=seed,
            threads=threads,
            spread=spread,
            recipe=recipe,
            anyway=anyway,
            progress=progress,
        )
    if not follows:
        show_bundle(bundle)
