"""The adaptive server against the same server fixed to its largest and to its smallest candidate, as the load rises.

    python benchmarks/serving.py runs/cifar10 --data cifar10/

Three servers of one bundle on one core take turns, several times at each step of the load, from idle to twice what the
largest candidate carries; another core sends the same pictures at the same times to each (Poisson, open loop). An
answer counts where it is right and within the objective, seen by the client: late, shed and failed ones are wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from anyvit.costs.units import TIME, read_amount
from anyvit.deploy.load import poisson
from anyvit.deploy.load_report import LoadReport, summarize
from interleaved import write_result
from servers import (
    Pictures,
    Server,
    Turns,
    anyvit_serve,
    computed_alone,
    free_port,
    machine,
    pictures_for,
    send,
    started,
    stay_on_the_last_core,
)

SHARES = (0.05, 0.4, 0.7, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0)
"""Of what the largest candidate carries."""
TRIED = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of what the engine of the largest candidate computes alone: the loads of which the best counts as carried."""
SIDES = ("adaptive", "largest", "smallest")
TURNS = 6
"""Of each server at each step: a machine that is slow for a while is so for all of them."""
LEAST_REQUESTS = 200
COUNTS = {"anyvit_level_switches_total": "level_switches", "anyvit_reliefs_total": "relieved_batches"}


def carried(server: Server, pictures: Pictures, slo: float, seconds: float) -> float:
    """The most images a second that a server answers within the objective, at any load that is tried."""
    alone, most = computed_alone(server.served()[0]), 0.0
    for place, share in enumerate(TRIED):
        sent = send(server, pictures, poisson(share * alone, seconds, seed=100 + place))
        report = summarize(sent, slo, seconds=seconds)
        most = max(most, (report.inside or 0.0) * report.asked_rate)
    return most


def step(
    servers: Mapping[str, Server], pictures: Pictures, rate: float, slo: float, seconds: float, place: int
) -> dict[str, dict[str, Any]]:
    """What becomes of a load, by server: each of them is first in turn."""
    sides = {name: Turns() for name in SIDES}
    part = max(seconds, LEAST_REQUESTS / rate) / TURNS
    for turn in range(TURNS):
        for name in SIDES[turn % 3 :] + SIDES[: turn % 3]:
            sides[name].take(servers[name], pictures, rate, part, seed=100 * place + turn, counts=tuple(COUNTS))
    return {name: told(side, slo) for name, side in sides.items()}


def told(side: Turns, slo: float) -> dict[str, Any]:
    report = side.report(slo)
    counts = {COUNTS[name]: value for name, value in side.counts.items()}
    return {**report.to_json(), "seconds": side.seconds, **counts, "line": line(report)}


def line(report: LoadReport) -> str:
    assert report.accuracy_inside
    low, high = report.accuracy_inside.interval
    latency = report.latency_ms or {}
    return (
        f"in time {report.inside:6.1%}, right in time {report.accuracy_inside.value:.1%} ({low:.1%} to {high:.1%}), "
        f"p50 {latency.get('p50', 0):.0f}, p99 {latency.get('p99', 0):.0f} ms"
    )


def verdict(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Is the adaptive server not below the better of the fixed ones, and is it above both?"""
    worth = {name: side["accuracy_inside"]["value"] for name, side in sides.items()}
    better = max(SIDES[1:], key=lambda name: worth[name])
    return {
        "better_of_the_fixed": better,
        "not_below_its_interval": worth["adaptive"] >= sides[better]["accuracy_inside"]["interval"][0],
        "above_both_by": worth["adaptive"] - worth[better],
    }


def plot(steps: list[dict[str, Any]], slo: float, file: Path) -> None:
    figure = Figure((9, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    loads = [each["share_of_largest"] for each in steps]
    for name, colour in zip(SIDES, ("#0b6e99", "#d1495b", "#7a7a7a"), strict=True):
        shares = [each["sides"][name]["accuracy_inside"] for each in steps]
        values = [100 * share["value"] for share in shares]
        reach = [[100 * abs(share["interval"][end] - share["value"]) for share in shares] for end in (0, 1)]
        above.errorbar(loads, values, reach, marker="o", capsize=3, label=name, color=colour)
        in_time = [100 * each["sides"][name]["inside"] for each in steps]
        below.plot(loads, in_time, marker="o", label=name, color=colour)
    above.set_ylabel(f"right within {1e3 * slo:g} ms, % of all requests")
    below.set_ylabel(f"answered within {1e3 * slo:g} ms, %")
    below.set_xlabel("load, as a share of what the largest candidate carries")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    """All steps, and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a bundle of several candidates, trained on the data")
    parser.add_argument("--data", required=True, help="labelled images, of which the test split is sent")
    parser.add_argument("--slo", default="100ms")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each server at each step")
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    asked = parser.parse_args()
    seconds = 2.0 if asked.quick else asked.seconds
    slo = read_amount(asked.slo, TIME, "ms", name="slo")
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        served: list[str] = []
        for name in SIDES:
            only = {"largest": served[:1], "smallest": served[-1:]}.get(name)
            options = ["--candidates", *only] if only else []
            port = free_port()
            command = anyvit_serve(asked.bundle, asked.slo, port, *options)
            servers[name] = stack.enter_context(started(command, port))
            if name == "adaptive":
                served = [each["id"] for each in servers[name].served()]
        stay_on_the_last_core()
        pictures = pictures_for(servers["adaptive"], asked.data)
        strength = carried(servers["largest"], pictures, slo, 1.0 if asked.quick else 5.0)
        print(f"the largest candidate carries {strength:.0f}/s within {asked.slo}; candidates {served}", flush=True)
        steps = []
        for place, share in enumerate(SHARES):
            rate = share * strength
            sides = step(servers, pictures, rate, slo, seconds, place)
            steps.append({"share_of_largest": share, "rate": rate, "sides": sides, **verdict(sides)})
            for name in SIDES:
                print(f"{share:4.2f} {rate:5.0f}/s {name:9} {sides[name].pop('line')}", flush=True)
    result = {
        **machine(),
        "bundle": served,
        "slo_ms": 1e3 * slo,
        "seconds": seconds,
        "turns": TURNS,
        "largest_carries_per_second": strength,
        "never_below": all(each["not_below_its_interval"] for each in steps),
        "steps": steps,
    }
    write_result("serving", result, quick=asked.quick)
    if not asked.quick:
        plot(steps, slo, Path(__file__).parent / "results" / "serving.png")


if __name__ == "__main__":
    main()
