"""What came of a load: rates, latencies, the share answered in time, and how right the answers were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anyvit.deploy.load import OUTCOMES, Sent, check_positive
from anyvit.errors import SettingError
from anyvit.evaluation.intervals import wilson

_LATE_SENDER_MS = 5.0  # the clock of an event loop ticks in milliseconds


@dataclass(frozen=True, slots=True)
class Share:
    """A share that was counted: its value, its 95 % interval (Wilson), and of how many requests."""

    value: float
    interval: tuple[float, float]
    count: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How a server bore a load.

    Attributes:
        slo_ms: The objective: an answer within it is in time.
        sent: Requests.
        asked_rate: Requests that were due in a second.
        achieved_rate: Answers in a second, until the last request had ended.
        outcomes: Requests by what became of them, for each key of `OUTCOMES`.
        latency_ms: "p50", "p90", "p95", "p99" and "max" of the answered, from when they were due. None: no answers.
        inside: The share answered in time, of all but those whose client left before the objective had passed. None:
            there were no others.
        accuracy: The share of right answers among the answered. None: there are none, or no labels.
        accuracy_inside: The share answered right and in time; of what `inside` is counted on. None: there are none, or
            no labels. Where pictures were sent more than once, intervals count each once.
        candidates: The share of the answers that each candidate gave, the largest first.
        sender_lag_ms: "p99" and "max" of how late the client itself came to sending.
        errors: How often each cause was met among the refused and the failed.
        notes: What to know before believing the rest, one sentence each.
    """

    slo_ms: float
    sent: int
    asked_rate: float
    achieved_rate: float
    outcomes: Mapping[str, int]
    latency_ms: Mapping[str, float] | None
    inside: float | None
    accuracy: Share | None
    accuracy_inside: Share | None
    candidates: Mapping[str, float]
    sender_lag_ms: Mapping[str, float]
    errors: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(sent: Sequence[Sent], slo: float, *, seconds: float | None = None) -> LoadReport:
    """How a server bore the load of `fire`.

    Args:
        sent: What `fire` gave.
        slo: Seconds within which an answer is in time.
        seconds: How long requests were sent. None: until the last was due.

    Raises:
        SettingError: Nothing was sent, or `slo` is not a finite number above 0.
    """
    check_positive(slo=slo)
    if not sent:
        raise SettingError("nothing was sent: there is nothing to report. Ask for a higher rate or a longer time.")
    answered = [each for each in sent if each.outcome == "answered"]
    in_time = [each for each in answered if each.latency <= slo]
    judged = [each for each in sent if each.outcome != "left" or each.latency > slo]
    last = max(each.scheduled for each in sent)
    end = max(each.scheduled + each.latency for each in sent)
    lag = _percentiles([each.lag for each in sent], (99,))
    errors = Counter(each.error for each in sent if each.error).most_common()
    return LoadReport(
        slo_ms=1000 * slo,
        sent=len(sent),
        asked_rate=len(sent) / (seconds or last or end),
        achieved_rate=len(answered) / max(seconds or 0, end),
        outcomes={name: sum(each.outcome == name for each in sent) for name in OUTCOMES},
        latency_ms=_percentiles([each.latency for each in answered], (50, 90, 95, 99)) if answered else None,
        inside=len(in_time) / len(judged) if judged else None,
        accuracy=_share(answered, answered),
        accuracy_inside=_share(in_time, judged),
        candidates=_shares([each.candidate for each in answered if each.candidate]),
        sender_lag_ms=lag,
        errors=dict(errors),
        notes=tuple(_doubts(lag, dict(errors))),
    )


def _percentiles(seconds: Sequence[float], wanted: Sequence[int]) -> dict[str, float]:
    """Percentiles and the largest, in milliseconds."""
    values = 1000 * np.asarray(seconds)
    figures = dict(zip((f"p{each}" for each in wanted), np.percentile(values, wanted).tolist(), strict=True))
    return {**figures, "max": float(values.max())}


def _share(right_among: Sequence[Sent], total: Sequence[Sent]) -> Share | None:
    """The share of `total` that was answered right in `right_among`; of those whose truth is known."""
    known = [each for each in total if each.truth is not None]
    if not known:
        return None
    right = sum(each.truth is not None and each.label == each.truth for each in right_among)
    value, pictures = right / len(known), len({each.picture for each in known})
    return Share(value, wilson(round(value * pictures), pictures), len(known))


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: count / len(names) for name, count in Counter(names).most_common()}


def _doubts(lag: Mapping[str, float], errors: Mapping[str, int]) -> list[str]:
    doubts = []
    if lag["p99"] > _LATE_SENDER_MS:
        doubts.append(
            f"The client itself was late: {lag['p99']:.1f} ms at the 99th percentile. Its latencies are not the "
            "server's alone: lower the rate, or give the client a core, or a machine, of its own."
        )
    if "EMFILE" in errors:
        doubts.append("The client ran out of open files, which is no fault of the server: raise `ulimit -n`.")
    return doubts
