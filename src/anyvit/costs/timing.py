"""The one timing protocol of the library (hardware-aware scaling, "Latency measurement").

Contention only ever adds time. So several runners are timed in interleaved rounds, a runner's latency is its smallest
round median, and where rounds disagree more are timed; what still disagrees is flagged `unstable`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from anyvit.costs.device import default_threads, machine_state, this_device
from anyvit.costs.pinning import pinned
from anyvit.costs.summary import Summary, summarize
from anyvit.errors import AnyViTError, ModelError, SettingError
from anyvit.protocols import Event, Progress, silent

MAX_REL_IQR = 0.10
MAX_SPREAD = 0.10
EXTRA_ROUNDS = 3
PROMISE_MARGIN = 1.05

Call = Callable[[Any], object]
"""What is timed: a runner, or anything else that is called with one input."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call takes, in seconds, and under which conditions that was measured."""

    seconds: float  # the smallest round median
    round_medians: tuple[float, ...]  # smallest first; where extra rounds were timed, the fastest of all
    p95: float  # of all runs in these rounds, none dropped
    rel_iqr: float  # distance of the quartiles over the median, in the fastest round
    spread: float  # (largest - smallest) / smallest round median
    unstable: bool  # rel_iqr or spread is above 0.10 even after the extra rounds
    interval: tuple[float, float]  # about 95 % of the median of the fastest round
    batch: int
    threads: int
    device: str  # the fingerprint
    state: Mapping[str, float]  # clock in MHz, temperature in °C, each where it can be read
    measured_at: str  # ISO 8601

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Latency:
        lists = {"round_medians": tuple(data["round_medians"]), "interval": tuple(data["interval"])}
        return cls(**{**data, **lists})


def measure_latency(runner: Call, make_input: Callable[[], Any], **protocol: Any) -> Latency:
    """How long one call of `runner` takes. `protocol` are the keyword arguments of `measure_latencies`."""
    name = getattr(runner, "__name__", type(runner).__name__)
    return measure_latencies({name: runner}, make_input, **protocol)[name]


def measure_latencies(
    runners: Mapping[str, Call],
    make_input: Callable[[], Any],
    *,
    batch: int = 1,
    threads: int | None = None,
    warmup_runs: int = 5,
    warmup_s: float = 0.5,
    runs: int = 25,
    rounds: int = 3,
    min_time_s: float = 0.5,
    sync: Callable[[], object] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    progress: Progress = silent,
    warn: bool = True,
) -> dict[str, Latency]:
    """How long one call of each runner takes, measured in interleaved rounds (A, B, C, A, B, C, …).

    Threads, the cores of the process and gradients are set for the time of measuring and given back.

    Args:
        runners: What to call, by name. Modules must be in eval mode.
        make_input: Gives the input of all calls; called once, outside the timed region.
        batch: Images in that input; recorded with the figures.
        threads: Of PyTorch, and cores to stay on; one where it is None and the input lies on the processor.
        warmup_runs: Calls before the first round, at least.
        warmup_s: Seconds of them, at least.
        runs: Calls in a round, at least.
        rounds: Rounds of each runner; up to three more where they disagree.
        min_time_s: Seconds of a round, at least.
        sync: Waits for the device before each look at the clock. None: PyTorch's, where the input is on an accelerator.
        clock: Monotonic nanoseconds.
        progress: Told before each round.
        warn: Say which timings are unstable. Where hundreds rank candidates, their flag is enough.

    Raises:
        SettingError: A module in training mode; `batch`, `threads`, `runs` or `rounds` below 1.
        ModelError: A runner failed; the message names it.
    """
    example = make_input()
    kind = example.device.type if isinstance(example, torch.Tensor) else "cpu"
    threads = default_threads(kind) if threads is None else threads
    _check(runners, batch=batch, threads=threads, runs=runs, rounds=rounds)
    if sync is None and kind != "cpu":
        sync = torch.accelerator.synchronize
    watch = _Stopwatch(example, clock, sync)
    conditions = _conditions(kind, batch, threads)
    series: dict[str, list[list[float]]] = {name: [] for name in runners}
    with pinned(threads), torch.inference_mode():
        for name, runner in runners.items():
            progress(Event("measure", f"{name}: warming up", 0.0))
            watch.time(name, runner, warmup_runs, warmup_s)
        for turn in range(rounds + EXTRA_ROUNDS):
            names = [name for name in runners if turn < rounds or _Rounds(series[name], rounds).unstable]
            for place, name in enumerate(names):
                progress(Event("measure", name, min((turn + place / len(names)) / rounds, 1.0)))
                series[name].append(watch.time(name, runners[name], runs, min_time_s))
    latencies = {name: _Rounds(timed, rounds).latency(conditions) for name, timed in series.items()}
    if warn:
        _warn(latencies)
    return latencies


@dataclass(frozen=True, slots=True)
class _Stopwatch:
    example: Any
    clock: Callable[[], int]
    sync: Callable[[], object] | None

    def time(self, name: str, runner: Call, runs: int, seconds: float) -> list[float]:
        """The times of at least `runs` calls that last at least `seconds` together."""
        times: list[float] = []
        start = self._now()
        while len(times) < runs or (self._now() - start) * 1e-9 < seconds:
            before = self._now()
            try:
                runner(self.example)
            except AnyViTError:
                raise
            except Exception as error:
                raise ModelError(f"{name} failed while it was timed: {type(error).__name__}: {error}") from error
            times.append((self._now() - before) * 1e-9)
        return times

    def _now(self) -> int:
        if self.sync:
            self.sync()
        return self.clock()


class _Rounds:
    """The rounds of one runner: of all timed, the `count` with the smallest medians."""

    def __init__(self, series: Sequence[Sequence[float]], count: int) -> None:
        summaries = [(summarize(times), times) for times in series]
        counted = sorted(summaries, key=lambda pair: pair[0].median)[:count]
        self.medians = [summary.median for summary, _ in counted]
        self.fastest: Summary = counted[0][0]
        self.times = [time for _, times in counted for time in times]
        self.spread = (self.medians[-1] - self.medians[0]) / self.medians[0] if self.medians[0] else 0.0
        self.unstable = self.fastest.rel_iqr > MAX_REL_IQR or self.spread > MAX_SPREAD

    def latency(self, conditions: Mapping[str, Any]) -> Latency:
        return Latency(
            seconds=self.medians[0],
            round_medians=tuple(self.medians),
            p95=float(np.quantile(self.times, 0.95)),
            rel_iqr=self.fastest.rel_iqr,
            spread=self.spread,
            unstable=self.unstable,
            interval=(self.fastest.ci_low, self.fastest.ci_high),
            **conditions,
        )


def _conditions(kind: str, batch: int, threads: int) -> dict[str, Any]:
    """What is recorded with every figure; asked before the process is pinned, for the cores belong to the device."""
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "batch": batch,
        "threads": threads,
        "device": this_device(kind).fingerprint,
        "state": machine_state(),
        "measured_at": measured_at,
    }


def _check(runners: Mapping[str, Call], **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SettingError(f"{name} {count} must be at least 1")
    for name, runner in runners.items():
        if isinstance(runner, torch.nn.Module) and runner.training:
            raise SettingError(f"{name} is in training mode. Call its eval() before it is timed.")


def _warn(latencies: Mapping[str, Latency]) -> None:
    unstable = [
        f"{name} (rounds differ by {latency.spread:.0%}, runs by {latency.rel_iqr:.0%})"
        for name, latency in latencies.items()
        if latency.unstable
    ]
    if unstable:
        logging.getLogger("anyvit").warning(
            "unstable timing of %s: measure again when the machine is quiet", ", ".join(unstable)
        )
