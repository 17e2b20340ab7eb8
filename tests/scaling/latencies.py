"""Latencies that were never measured."""

from anyvit.costs.timing import Latency


def latency(seconds, *, unstable=False, width=0.0):
    return Latency(
        seconds=seconds,
        round_medians=(seconds,) * 3,
        p95=seconds,
        rel_iqr=0.0,
        spread=0.0,
        unstable=unstable,
        interval=(seconds * (1 - width), seconds * (1 + width)),
        batch=1,
        threads=1,
        device="none",
        state={},
        measured_at="2024-01-01T00:00:00+00:00",
    )
