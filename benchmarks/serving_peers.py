"""One candidate behind `anyvit serve` and behind LitServe with its batching: the load that each carries in time.

    pip install litserve
    python benchmarks/serving_peers.py runs/cifar10 --data cifar10/

Both serve the most accurate candidate of the bundle, on one core, from the same encoded pictures to the same labels;
another core sends (Poisson, open loop): to `anyvit serve` the bytes, to LitServe JSON with the bytes in base64, as its
documentation has it. LitServe gets the sizes and waiting times of batches that are listed below, and the best counts.
They take turns, several times at every load; who is not in turn stands still, for an idle LitServe asks its queue all
the time, and takes a seventh of the core for it. What each carries is the highest load of which 99 % is answered within
the objective; beside it stands what is answered in time where more comes than either can carry.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anyvit.costs.units import TIME, read_amount
from interleaved import write_result
from servers import (
    Pictures,
    Server,
    Turns,
    alone,
    anyvit_serve,
    computed_alone,
    free_port,
    machine,
    pictures_for,
    started,
    stay_on_the_last_core,
)

OURS, LITSERVE = "anyvit", Path(__file__).with_name("litserve_server.py")
BATCHES = ((1, 0.0), (8, 0.005))
"""The most images of a LitServe batch, and the seconds that one waits to fill."""
TURNS = 6
"""Of each server at each load."""
SHARES = (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.75)
"""Of what the engine computes alone."""
IN_TIME, LOST = 0.99, 0.5
"""Who answers less than the second share of a load in time is spared the higher ones."""


def told(turns: Turns, slo: float) -> dict[str, Any]:
    report = turns.report(slo)
    return {
        "in_time": report.inside,
        "in_time_per_second": (report.inside or 0.0) * report.asked_rate,
        "latency_ms": report.latency_ms,
        "outcomes": dict(report.outcomes),
        "accuracy": report.accuracy and report.accuracy.value,
        "line": f"in time {report.inside:6.1%}, p99 {(report.latency_ms or {}).get('p99', 0):.0f} ms",
    }


def largest_of(bundle: str, slo: str, data: str) -> tuple[str, Pictures]:
    """The most accurate candidate that `anyvit serve` would serve, and pictures for it."""
    port = free_port()
    with started(anyvit_serve(bundle, slo, port), port) as server:
        return server.served()[0]["id"], pictures_for(server, data)


def start_all(bundle: str, slo: str, candidate: str, stack: ExitStack) -> dict[str, Server]:
    """Both kinds of servers, of this candidate."""
    port = free_port()
    command = anyvit_serve(bundle, slo, port, "--candidates", candidate)
    servers = {OURS: stack.enter_context(started(command, port))}
    for most, wait in BATCHES:
        port = free_port()
        words = [sys.executable, str(LITSERVE), bundle, candidate, str(most), str(wait), str(port)]
        name = f"litserve, {most} at most, {1e3 * wait:g} ms"
        servers[name] = stack.enter_context(started(words, port, ready="/health"))
    return servers


def step(
    servers: Mapping[str, Server], pictures: Pictures, as_json: Pictures, rate: float, seconds: float, place: int
) -> dict[str, Turns]:
    """What becomes of a load, by server."""
    sides = {name: Turns() for name in servers}
    for turn in range(TURNS):
        for name in list(servers)[:: -1 if turn % 2 else 1]:
            sent = pictures if name == OURS else as_json
            with alone(servers[name], servers.values()):
                sides[name].take(servers[name], sent, rate, seconds / TURNS, seed=100 * place + turn)
    return sides


def main() -> None:
    """All loads, and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True, help="labelled images, of which the test split is sent")
    parser.add_argument("--slo", default="100ms")
    parser.add_argument("--seconds", type=float, default=18.0, help="of each server at each load")
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    asked = parser.parse_args()
    slo, seconds = read_amount(asked.slo, TIME, "ms", name="slo"), 1.0 if asked.quick else asked.seconds
    largest, pictures = largest_of(asked.bundle, asked.slo, asked.data)
    bodies = [json.dumps({"image": base64.b64encode(each).decode()}).encode() for each in pictures.contents]
    as_json = replace(pictures, contents=bodies)
    with ExitStack() as stack:
        servers = start_all(asked.bundle, asked.slo, largest, stack)
        stay_on_the_last_core()
        alone_per_second = computed_alone(servers[OURS].served()[0])
        loads: dict[str, dict[float, Any]] = {name: {} for name in servers}
        able = dict(servers)
        for place, share in enumerate(SHARES[:1] if asked.quick else SHARES):
            rate = share * alone_per_second
            for name, side in step(able, pictures, as_json, rate, seconds, place).items():
                loads[name][rate] = load = told(side, slo)
                print(f"{rate:5.0f}/s {name:28} {load.pop('line')}", flush=True)
                if load["in_time"] < LOST:
                    able.pop(name)
                    servers[name].signal(signal.SIGSTOP)
    best = {
        name: max((rate for rate, t in by.items() if t["in_time"] >= IN_TIME), default=0.0)
        for name, by in loads.items()
    }
    over = {name: max(t["in_time_per_second"] for t in by.values()) for name, by in loads.items()}
    peers = [name for name in servers if name != OURS]
    result = {
        **machine(),
        "litserve": version("litserve"),
        "candidate": largest,
        "slo_ms": 1e3 * slo,
        "seconds": seconds,
        "turns": TURNS,
        "engine_alone_per_second": alone_per_second,
        "carried_99_percent_in_time": best,
        "most_in_time_per_second": over,
        "ratio_carried": best[OURS] / max(*(best[name] for name in peers), 1e-9),
        "ratio_most_in_time": over[OURS] / max(over[name] for name in peers),
        "loads": {name: {f"{rate:.1f}": load for rate, load in by.items()} for name, by in loads.items()},
    }
    print({key: result[key] for key in ("carried_99_percent_in_time", "most_in_time_per_second", "ratio_carried")})
    write_result("serving_peers", result, quick=asked.quick)


if __name__ == "__main__":
    main()
