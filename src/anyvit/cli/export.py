"""`anyvit export`: a bundle out, for machines without AnyViT."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.predict import Folder
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json

Format = Annotated[str, typer.Option(help="onnx (one file), openvino (a folder) or torch (one file).")]
Out = Annotated[str | None, typer.Option(help="Where to. [model.onnx, openvino/ or model.pt2 in the bundle]")]
BudgetOption = Annotated[str | None, typer.Option(help="Export the best candidate inside it. [the chosen one]")]
Data = Annotated[str | None, typer.Option(help="Labelled images to verify on. [the test images of the run]")]


def export(
    bundle: Folder,
    format: Format = "onnx",
    out: Out = None,
    budget: BudgetOption = None,
    data: Data = None,
    json: JsonOption = False,
) -> None:
    """Write a model that carries labels and preprocessing, verified from file to label on real images."""
    import anyvit

    with ShowProgress() as progress:
        exported = anyvit.export(bundle, format=format, out=out, budget=budget, data=data, progress=progress)
    if json:
        show_json(exported)
        return
    say(f"{exported.path} ({exported.size / 1e6:.1f} MB) holds {exported.candidate}")
    say(str(exported.verification))
    for note in exported.notes:
        say(f"note: {note}")
    say(f"a program that uses it: {exported.script}")
