"""`anyvit loadtest`: how a server bears a load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anyvit.cli.fit import Seed
from anyvit.cli.progress import ShowProgress
from anyvit.cli.show import JsonOption, say, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyvit.deploy.load_report import LoadReport, Share

Url = Annotated[str, typer.Argument(help="The address of a server, http://127.0.0.1:8000. Nothing else is talked to.")]
Data = Annotated[
    str | None, typer.Option(help="Labelled images, of any format that `fit` opens, to score answers by. [none]")
]
ImagesOption = Annotated[
    str | None, typer.Option(help="A file, a folder or a pattern of images without labels. [made-up pictures]")
]
Rate = Annotated[float, typer.Option(help="Requests a second, in the mean, whatever the answers do.")]
Duration = Annotated[str, typer.Option(help="How long they are sent: 30s, 5m.")]
Shape = Annotated[str, typer.Option(help="How they arrive: poisson, or bursts of three times the rate.")]
Deadline = Annotated[str | None, typer.Option(help="How long an answer may take, 30ms. [the server's own]")]
Slo = Annotated[str | None, typer.Option(help="An answer within it is in time, 50ms. [the server's own]")]
Out = Annotated[str | None, typer.Option(help="A JSON file for the report and a line for each request. [none]")]


def loadtest(
    url: Url,
    data: Data = None,
    images: ImagesOption = None,
    rate: Rate = 10.0,
    duration: Duration = "30s",
    shape: Shape = "poisson",
    deadline: Deadline = None,
    slo: Slo = None,
    seed: Seed = 0,
    out: Out = None,
    json: JsonOption = False,
) -> None:
    """Send requests to a server at a rate of their own: latencies, how many are in time, how right the answers are."""
    import anyvit

    with ShowProgress() as progress:
        report = anyvit.loadtest(
            url,
            data=data,
            images=images,
            rate=rate,
            duration=duration,
            shape=shape,
            deadline=deadline,
            slo=slo,
            seed=seed,
            out=out,
            progress=progress,
        )
    if json:
        show_json(report)
        return
    _show_figures(report)
    _show_outcomes(report)
    for note in report.notes:
        say(f"note: {note}")
    if out:
        say(f"{out} holds all of it")


def _show_figures(report: LoadReport) -> None:
    within = f"within {report.slo_ms:g} ms"
    inside = "-" if report.inside is None else f"{report.inside:.1%}"
    lines = [
        ("asked", f"{report.asked_rate:.1f} requests a second, {report.sent} in all"),
        ("answered", f"{report.achieved_rate:.1f} a second"),
        (within, inside),
    ]
    if report.accuracy is not None:
        lines.append(("accuracy", f"{_share(report.accuracy)} of what was answered"))
    if report.accuracy_inside is not None:
        lines.append(("right in time", f"{_share(report.accuracy_inside)} of all that was asked"))
    if report.latency_ms is not None:
        lines.append(("latency", _milliseconds(report.latency_ms)))
    lines.append(("sender lag", _milliseconds(report.sender_lag_ms)))
    width = max(len(name) for name, _ in lines)
    for name, words in lines:
        say(f"{name:<{width}}  {words}")


def _show_outcomes(report: LoadReport) -> None:
    say("")
    rows = [
        (name.replace("_", " "), str(count), f"{count / report.sent:.1%}")
        for name, count in report.outcomes.items()
        if count
    ]
    show_table(("outcome", "requests", "share"), rows, right=("requests", "share"))
    if report.errors:
        causes = ", ".join(f"{cause} ({count})" for cause, count in report.errors.items())
        say(f"causes: {causes}")
    say("")
    if report.candidates:
        shares = [(name, f"{share:.1%}") for name, share in report.candidates.items()]
        show_table(("candidate", "share of answers"), shares, right=("share of answers",))


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} (95% interval {low:.1%} to {high:.1%})"


def _milliseconds(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.1f}" for name, value in figures.items()) + " ms"
