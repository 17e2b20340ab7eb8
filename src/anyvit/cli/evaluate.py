"""`anyvit evaluate`: what a bundle is worth on labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.predict import BatchSize, BudgetOption, Folder
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json, show_table

if TYPE_CHECKING:
    from anyvit.evaluation.metrics import Scores

Data = Annotated[str | None, typer.Argument(help="Labelled images of any format. [the test images of the run]")]


def evaluate(
    bundle: Folder, data: Data = None, budget: BudgetOption = None, batch_size: BatchSize = 64, json: JsonOption = False
) -> None:
    """Accuracy with its interval, a table by class, the confusion matrix and the calibration error."""
    import anyvit

    with ShowProgress() as progress:
        evaluation = anyvit.evaluate(bundle, data, budget=budget, batch_size=batch_size, progress=progress)
    if json:
        show_json(evaluation)
        return
    scores = evaluation.scores
    low, high = scores.interval
    say(f"{evaluation.candidate} on {scores.count} images of {evaluation.data}")
    say(f"accuracy           {scores.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})")
    say(f"balanced accuracy  {scores.balanced_accuracy:.1%}")
    say(f"calibration error  {scores.calibration_error:.1%}")
    for note in evaluation.notes:
        say(f"note: {note}")
    _show_classes(scores)


MOST_COLUMNS = 12
"""Classes up to which the confusion matrix is shown in the terminal."""


def _show_classes(scores: Scores) -> None:
    names = list(scores.classes)
    share = [
        (name, _share(score.recall), _share(score.precision), str(score.count))
        for name, score in scores.classes.items()
    ]
    say("")
    show_table(("class", "recall", "precision", "images"), share, right=("recall", "precision", "images"))
    if len(names) <= MOST_COLUMNS:
        say("\nrows: the truth; columns: the answer")
        rows = [(name, *map(str, row)) for name, row in zip(names, scores.confusion, strict=True)]
        show_table(("", *names), rows, right=names)
    else:
        say(f"\nThe confusion matrix of {len(names)} classes is in --json and in the report.")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
