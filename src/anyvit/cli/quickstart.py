"""`anyvit quickstart`: the main job on embedded data."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.fit import Seed
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import show_bundle

Out = Annotated[str, typer.Option(help="The folder of the bundle.")]


def quickstart(out: Out = "runs/quickstart", seed: Seed = 0) -> None:
    """`fit` on scikit-learn's handwritten digits: under three minutes on two cores, no download."""
    import anyvit

    with ShowProgress() as progress:
        bundle = anyvit.quickstart(out=out, seed=seed, progress=progress)
    show_bundle(bundle)
