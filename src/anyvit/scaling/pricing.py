"""What candidates cost on this machine, each stated with its conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from anyvit.costs.counts import count_macs, count_params, weights_size
from anyvit.costs.timing import Latency, measure_latencies
from anyvit.protocols import Progress, Runner, silent
from anyvit.scaling.candidate import Candidate, Result
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import Tensor

THROUGHPUT_BATCH = 32
"""Images a batch where throughput is measured."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What every timing states: image size in pixels, images a batch, and threads."""

    image_size: int
    batch: int = 1
    threads: int = 1

    def example(self, batch: int | None = None) -> Tensor:
        """A fixed random batch (B, 3, S, S)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch or self.batch, 3, self.image_size, self.image_size, generator=generator)


def price(
    workshop: Workshop,
    wanted: Sequence[Candidate],
    conditions: Conditions,
    *,
    throughput: bool = False,
    end_to_end: Callable[[Runner], Callable[[Any], Any]] | None = None,
    progress: Progress = silent,
    **protocol: Any,
) -> list[Result]:
    """Counted costs and latencies of candidates, measured in interleaved rounds, in the order given.

    Args:
        workshop: Builds them; the weights of its model need not be trained.
        wanted: The candidates.
        conditions: Image size, batch and threads of the timing.
        throughput: Measure images per second too, at a batch of 32.
        end_to_end: Turns a runner into a call that reads, decodes and preprocesses as well; its time is
            `latency_e2e`. None: not measured.
        progress: Told how far the rounds are.
        protocol: Overrides of `measure_latencies`: runs, rounds, seconds.
    """
    counts = count(workshop, wanted, conditions.image_size)
    runners = {candidate.id: workshop.runner(candidate) for candidate in wanted}
    latencies = time_calls(runners, conditions, conditions.batch, progress=progress, **protocol)
    costs = {
        name: {
            **counts[name],
            **dict.fromkeys(("latency", "latency_expected"), latency.seconds),
            "latency_p95": latency.p95,
        }
        for name, latency in latencies.items()
    }
    if throughput:
        for name, latency in time_calls(runners, conditions, THROUGHPUT_BATCH, progress=progress, **protocol).items():
            costs[name]["throughput"] = THROUGHPUT_BATCH / latency.seconds
    if end_to_end:
        whole = {name: end_to_end(runner) for name, runner in runners.items()}
        for name, latency in time_calls(whole, conditions, conditions.batch, progress=progress, **protocol).items():
            costs[name]["latency_e2e"] = latency.seconds
    return [Result(candidate, costs[candidate.id], unstable=latencies[candidate.id].unstable) for candidate in wanted]


def time_calls(
    calls: Mapping[str, Callable[[Any], Any]],
    conditions: Conditions,
    batch: int,
    *,
    progress: Progress = silent,
    **protocol: Any,
) -> dict[str, Latency]:
    """The library's timing protocol over `calls`, interleaved, on one fixed batch of the conditions' image size."""
    example = conditions.example(batch)
    return measure_latencies(
        calls, lambda: example, batch=batch, threads=conditions.threads, progress=progress, **protocol
    )


def count(workshop: Workshop, wanted: Sequence[Candidate], image_size: int) -> dict[str, dict[str, float]]:
    """Parameters, multiply-accumulates and bytes of weights by candidate: what needs no clock."""
    by_shape: dict[int, dict[str, float]] = {}
    counts = {}
    for candidate in wanted:
        smaller = workshop.shape(candidate)
        if id(smaller) not in by_shape:
            by_shape[id(smaller)] = {
                "params": count_params(smaller),
                "macs": count_macs(smaller, image_size),
                "size": weights_size(smaller),
            }
        counts[candidate.id] = by_shape[id(smaller)]
    return counts
