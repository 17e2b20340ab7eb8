"""`anyvit predict`: what is on these images?"""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.show import JsonOption, say, show_json, show_table

if TYPE_CHECKING:
    from anyvit.deploy.prediction import Prediction, Vote

Folder = Annotated[str, typer.Argument(help="The folder of a bundle.")]
BundleOrPlaced = Annotated[str, typer.Argument(help="The folder of a bundle, or one that `anyvit spread` has written.")]
ImagePaths = Annotated[
    list[str], typer.Argument(help="Files, folders or patterns; `-` is one image on standard input.")
]
BudgetOption = Annotated[str | None, typer.Option(help="Answer with the best candidate inside it. [the chosen one]")]
TopK = Annotated[int, typer.Option(help="How many classes to name.")]
BatchSize = Annotated[int, typer.Option(help="Images a call of the model.")]
Quorum = Annotated[int | None, typer.Option(help="Of boards: the least number of groups that must answer. [1]")]
Deadline = Annotated[str | None, typer.Option(help="Of boards: time for an answer, 500ms. [10 times the plan, >= 1s]")]
Transport = Annotated[str | None, typer.Option(help="Of boards: grpc or ray. [grpc]")]
TokenFile = Annotated[str | None, typer.Option(help="A file with the token of the boards. [ANYVIT_TOKEN]")]
TlsCa = Annotated[str | None, typer.Option(help="Who signs the certificates of the other side, PEM. [no encryption]")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]


def predict(
    bundle: BundleOrPlaced,
    images: ImagePaths,
    budget: BudgetOption = None,
    top_k: TopK = 1,
    batch_size: BatchSize = 1,
    quorum: Quorum = None,
    deadline: Deadline = None,
    transport: Transport = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    json: JsonOption = False,
    csv: CsvOption = False,
) -> None:
    """The class of each image, with its probability. An image that cannot be read is said and passed over."""
    import anyvit

    predictions = anyvit.predict(
        bundle,
        images,
        budget=budget,
        top_k=top_k,
        batch_size=batch_size,
        quorum=quorum,
        deadline=deadline,
        transport=transport,
        token_file=token_file,
        tls_ca=tls_ca,
    )
    if json:
        show_json(predictions)
    elif csv:
        _show_csv(predictions)
    else:
        _show_table(predictions)


def _show_table(predictions: list[Prediction]) -> None:
    votes = [prediction.vote for prediction in predictions if prediction.vote]
    columns = ("image", "answer", "probability", *(("votes",) if votes else ()))
    show_table(columns, [_row(prediction, with_votes=bool(votes)) for prediction in predictions])
    for line in dict.fromkeys(line for vote in votes for line in _lacking(vote)):
        say(line)


def _row(prediction: Prediction, *, with_votes: bool) -> tuple[str, ...]:
    if prediction.error:
        return prediction.name, f"cannot be read: {prediction.error}", *("", "")[: 1 + with_votes]
    labels = ", ".join(label for label, _ in prediction.top)
    probabilities = ", ".join(f"{probability:.1%}" for _, probability in prediction.top)
    vote = prediction.vote
    return prediction.name, labels, probabilities, *((f"{vote.voted} of {vote.of}" if vote else "",) * with_votes)


def _lacking(vote: Vote) -> list[str]:
    """What there is to say of an answer that boards are missing from."""
    lines = [f"missing: {board} ({reason})" for board, reason in vote.missing.items()]
    if vote.missing and vote.known:
        known = vote.known
        lines.append(
            f"with {known.missing} of {vote.of} missing, accuracy is {known.mean:.1%} in the mean, "
            f"{known.worst:.1%} at worst ({known.sets} sets, validation images)"
        )
    return lines


def _show_csv(predictions: list[Prediction]) -> None:
    """A line an image and a class."""
    writer = csv.writer(sys.stdout)
    spread = any(prediction.vote for prediction in predictions)
    writer.writerow(("image", "rank", "label", "probability", "error", *(VOTE_COLUMNS if spread else ())))
    for prediction in predictions:
        vote = _vote_cells(prediction.vote) if spread else ()
        if prediction.error:
            writer.writerow((prediction.name, "", "", "", prediction.error, *vote))
        for rank, (label, probability) in enumerate(prediction.top, 1):
            writer.writerow((prediction.name, rank, label, f"{probability:.6f}", "", *vote))


VOTE_COLUMNS = ("voted", "of", "missing", "known_mean", "known_worst")


def _vote_cells(vote: Vote | None) -> tuple[str, ...]:
    if vote is None:
        return ("",) * len(VOTE_COLUMNS)
    missing = "; ".join(f"{board}: {reason}" for board, reason in vote.missing.items())
    known = (f"{vote.known.mean:.6f}", f"{vote.known.worst:.6f}") if vote.known else ("", "")
    return str(vote.voted), str(vote.of), missing, *known
