"""`anyvit predict`: what is on these images?"""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.show import JsonOption, show_json, show_table

if TYPE_CHECKING:
    from anyvit.deploy.runtime import Prediction

Folder = Annotated[str, typer.Argument(help="The folder of a bundle.")]
ImagePaths = Annotated[
    list[str], typer.Argument(help="Files, folders or patterns; `-` is one image on standard input.")
]
BudgetOption = Annotated[str | None, typer.Option(help="Answer with the best candidate inside it. [the chosen one]")]
TopK = Annotated[int, typer.Option(help="How many classes to name.")]
BatchSize = Annotated[int, typer.Option(help="Images a call of the model.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]


def predict(
    bundle: Folder,
    images: ImagePaths,
    budget: BudgetOption = None,
    top_k: TopK = 1,
    batch_size: BatchSize = 1,
    json: JsonOption = False,
    csv: CsvOption = False,
) -> None:
    """The class of each image, with its probability. An image that cannot be read is said and passed over."""
    import anyvit

    predictions = anyvit.predict(bundle, images, budget=budget, top_k=top_k, batch_size=batch_size)
    if json:
        show_json(predictions)
    elif csv:
        _show_csv(predictions)
    else:
        show_table(("image", "answer", "probability"), [_row(prediction) for prediction in predictions])


def _row(prediction: Prediction) -> tuple[str, str, str]:
    if prediction.error:
        return prediction.name, f"cannot be read: {prediction.error}", ""
    labels = ", ".join(label for label, _ in prediction.top)
    return prediction.name, labels, ", ".join(f"{probability:.1%}" for _, probability in prediction.top)


def _show_csv(predictions: list[Prediction]) -> None:
    """A line an image and a class."""
    writer = csv.writer(sys.stdout)
    writer.writerow(("image", "rank", "label", "probability", "error"))
    for prediction in predictions:
        if prediction.error:
            writer.writerow((prediction.name, "", "", "", prediction.error))
        for rank, (label, probability) in enumerate(prediction.top, 1):
            writer.writerow((prediction.name, rank, label, f"{probability:.6f}", ""))
