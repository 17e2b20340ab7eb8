"""A server under load: pictures are sent at times drawn beforehand, whatever its answers do (an open loop).

A client that waits for an answer before it asks again slows down with the server and so flatters it ("coordinated
omission"). Here a latency counts from when its request was due, not from when a socket was free.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from time import monotonic
from types import ModuleType
from typing import Any

import numpy as np

from anyvit.deploy.serving.garbage import what_is_there_spared
from anyvit.errors import MissingExtraError, SettingError
from anyvit.protocols import Event, Progress, silent

OUTCOMES: Mapping[str, str] = {
    "answered": "an answer came",
    "shed": "429, the server is overloaded",
    "expired": "504, its deadline passed before it was computed",
    "not_ready": "503, the server is not ready",
    "refused": "another 4xx, the request is at fault",
    "failed": "5xx, a broken connection, or no answer within the time limit",
    "left": "the client hung up first",
}
"""What becomes of a request."""

_OUTCOME_OF_STATUS = {429: "shed", 503: "not_ready", 504: "expired"}
_KEEP_ALIVE_S = 4.0  # below the 5 s after which uvicorn hangs up: an idle connection is never used as it closes
_SECONDS_BETWEEN_EVENTS = 0.5


def poisson(rate: float, seconds: float, *, seed: int) -> np.ndarray:
    """Arrivals that know nothing of each other.

    Args:
        rate: Requests a second, in the mean.
        seconds: How long they go on.
        seed: Of the draw.

    Returns:
        Times (N,) in seconds within 0..`seconds`, ascending; N itself is drawn.

    Raises:
        SettingError: `rate` or `seconds` is not a finite number above 0.
    """
    check_positive(rate=rate, seconds=seconds)
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))


def bursts(
    rate: float, seconds: float, *, seed: int, factor: float = 3.0, share: float = 0.2, period: float = 10.0
) -> np.ndarray:
    """Arrivals that are calm and crowded in turns.

    Time is cut into as many equal periods as fit best. In the middle of each, for `share` of it, arrivals are a Poisson
    stream of `factor * rate`; before and after it of `rate * (1 - factor * share) / (1 - share)`, so that the mean is
    `rate`. As it stands: 4 s at half the rate, 2 s at three times the rate, 4 s at half the rate, and again.

    Args:
        rate: Requests a second, in the mean.
        seconds: How long they go on.
        seed: Of the draw; as many arrive as in `poisson` with the same one.
        factor: The rate within a burst, in mean rates.
        share: Of the time that is burst.
        period: About how many seconds lie between the beginnings of two bursts.

    Returns:
        Times (N,) in seconds within 0..`seconds`, ascending.

    Raises:
        SettingError: A value is not a finite number above 0, `share` is not below 1, or `factor * share` is above 1.
    """
    check_positive(rate=rate, seconds=seconds, factor=factor, share=share, period=period)
    if share >= 1 or factor * share > 1:
        raise SettingError(
            f"bursts of {factor:g} times the rate for {share:g} of the time exceed the mean: share must be below 1, "
            "factor * share at most 1."
        )
    starts = np.linspace(0, seconds, max(1, round(seconds / period)) + 1)

    def corners(burst: float) -> np.ndarray:
        """Where each period begins, its burst begins and ends, were the burst this share of it."""
        parts = np.array([0, (1 - burst) / 2, (1 + burst) / 2])
        return np.append(np.add.outer(starts[:-1], starts[1] * parts).ravel(), seconds)

    even = poisson(rate, seconds, seed=seed)  # stretched where it is calm, pressed together in the bursts
    return np.interp(even, corners(factor * share), corners(share))


SHAPES: Mapping[str, Callable[..., np.ndarray]] = {"poisson": poisson, "bursts": bursts}
"""Ways in which requests arrive: mean rate, seconds and seed in, times out."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and what became of it.

    Attributes:
        scheduled: When it was due, in seconds from the start.
        picture: Which of the pictures it carried.
        outcome: A key of `OUTCOMES`.
        latency: Seconds from when it was due to its end.
        lag: Seconds from when it was due to when the client came to sending it.
        status: Of HTTP; None where there was none.
        candidate: Which one answered.
        label: The class that was answered.
        truth: The true class, where it is known.
        waited: Seconds in the queue, as the server says.
        computed: Seconds of computing, as the server says.
        error: In a word, what was refused or failed.
    """

    scheduled: float
    picture: int
    outcome: str
    latency: float
    lag: float
    status: int | None = None
    candidate: str | None = None
    label: str | None = None
    truth: str | None = None
    waited: float | None = None
    computed: float | None = None
    error: str | None = None


async def fire(
    url: str,
    pictures: Sequence[bytes],
    arrivals: np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    deadline: float | None = None,
    time_limit: float = 10.0,
    connections: int | None = None,
    leave_early: float = 0.0,
    leave_after: float = 0.0,
    into: list[Sent] | None = None,
    progress: Progress = silent,
) -> list[Sent]:
    """Send pictures to a server at given times, whatever its answers do.

    Args:
        url: Of the server, `http://127.0.0.1:8000`; they go to `/v1/predict` there and nowhere else.
        pictures: Encoded images. In an order that is drawn, each is sent once before any is sent again.
        arrivals: When requests are due, (N,) in seconds from the start, ascending.
        labels: The true class of each picture.
        seed: Of the order of the pictures, and of who leaves early.
        deadline: Seconds to tell the server that an answer may take. None: the server's own.
        time_limit: Seconds after which an answer is no longer waited for, from when the request is sent.
        connections: The most at a time; requests wait for one, and their latency with them. None: no limit.
        leave_early: The share of requests whose client hangs up
        leave_after: this many seconds after they are sent.
        into: A list that requests are put into as they end. Where this is cancelled, it has all that were sent.
        progress: Hears about twice a second how far it is.

    Returns:
        A line for each request, by the time at which it was due.

    Raises:
        SettingError: No pictures, not as many labels as pictures, or a value outside its range.
        MissingExtraError: aiohttp is not installed.
    """
    _check(pictures, labels, leave_early)
    check_positive(time_limit=time_limit, **({} if deadline is None else {"deadline": deadline}))
    aiohttp, random = import_client(), np.random.default_rng([seed, 1])  # not the draws of the arrivals
    sent: list[Sent] = [] if into is None else into
    order = _rounds(random, len(pictures), len(arrivals)).tolist()
    leaves = (random.random(len(arrivals)) < leave_early).tolist()
    async with _session(aiohttp, time_limit, deadline, connections) as session:
        sender = _Sender(aiohttp, session, url, pictures, labels, sent)
        teller = _Teller(progress, sent, float(arrivals[-1]) if len(arrivals) else 0.0)
        async with asyncio.TaskGroup() as under_way:
            for index, due in enumerate(arrivals.tolist()):
                if (wait := sender.start + due - monotonic()) > 0:
                    await asyncio.sleep(wait)
                patience = leave_after if leaves[index] else None
                under_way.create_task(sender.send(due, order[index], patience))
                teller.tell(due, index)
    return sorted(sent, key=attrgetter("scheduled"))


def fire_and_wait(url: str, pictures: Sequence[bytes], arrivals: np.ndarray, **options: Any) -> list[Sent]:
    """`fire` with its options, for those without an event loop. Ctrl-C ends it: what was sent so far is returned."""
    sent: list[Sent] = []

    async def until_cancelled() -> None:
        with suppress(asyncio.CancelledError):  # so Ctrl-C arrives inside asyncio.run
            await fire(url, pictures, arrivals, into=sent, **options)

    with what_is_there_spared():  # a pause of the client would look like one of the server
        asyncio.run(until_cancelled())
    return sorted(sent, key=attrgetter("scheduled"))


def import_client() -> ModuleType:
    """The module aiohttp.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import aiohttp
    except ModuleNotFoundError as error:
        raise MissingExtraError("aiohttp", "serve") from error
    return aiohttp


def _session(aiohttp: ModuleType, time_limit: float, deadline: float | None, connections: int | None) -> Any:
    connector = aiohttp.TCPConnector(limit=connections or 0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=None)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=time_limit),
        headers={} if deadline is None else {"Anyvit-Deadline": f"{1000 * deadline:g}ms"},
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class _Sender:
    """Sends one request after the other and writes down what becomes of each."""

    def __init__(
        self,
        aiohttp: ModuleType,
        session: Any,
        url: str,
        pictures: Sequence[bytes],
        labels: Sequence[str] | None,
        sent: list[Sent],
    ) -> None:
        with warnings.catch_warnings():  # of pictures above 1 MB: a photograph is one
            warnings.simplefilter("ignore", ResourceWarning)
            self.bodies = [aiohttp.BytesPayload(picture) for picture in pictures]
        self.post, self.broken = session.post, (aiohttp.ClientError, OSError)
        self.target = f"{url.rstrip('/')}/v1/predict"
        self.labels, self.sent = labels, sent
        self.start = monotonic()

    async def send(self, due: float, picture: int, patience: float | None) -> None:
        due_at = self.start + due
        lag = monotonic() - due_at
        outcome, status, found = "left", None, _NOTHING  # what it stays where this is cancelled
        try:
            async with asyncio.timeout(patience) as patient:
                async with self.post(self.target, data=self.bodies[picture], allow_redirects=False) as response:
                    status = response.status
                    outcome, found = _read(status, await response.read())
        except TimeoutError:
            outcome, found = ("left", _NOTHING) if patient.expired() else ("failed", {"error": "time limit"})
        except self.broken as error:
            outcome, found = "failed", {"error": _name(error)}
        finally:
            truth = self.labels[picture] if self.labels else None
            latency = monotonic() - due_at
            self.sent.append(Sent(due, picture, outcome, latency, lag, status, truth=truth, **found))


_NOTHING: Mapping[str, Any] = {}


def _read(status: int, body: bytes) -> tuple[str, Mapping[str, Any]]:
    """The outcome, and the fields of `Sent` that the body of an answer tells."""
    if status == 200:
        try:
            (answer,) = json.loads(body)["predictions"]
            times = {name: answer[f"{name}_ms"] for name in ("waited", "computed")}
            found = {name: None if time is None else time / 1000 for name, time in times.items()}
            return "answered", {"label": answer["label"], "candidate": answer["candidate"], **found}
        except (ValueError, KeyError, TypeError):
            return "failed", {"error": "not an answer of `anyvit serve`"}
    if outcome := _OUTCOME_OF_STATUS.get(status):
        return outcome, _NOTHING
    try:
        word = str(json.loads(body)["type"])
    except (ValueError, KeyError, TypeError):
        word = f"status {status}"
    return "refused" if 400 <= status < 500 else "failed", {"error": word}


def _name(error: Exception) -> str:
    code = getattr(error, "errno", None)
    return errno.errorcode.get(code or 0, type(error).__name__)


class _Teller:
    """Tells how far the sending is, now and then."""

    def __init__(self, progress: Progress, sent: Sequence[Sent], seconds: float) -> None:
        self.progress, self.sent, self.seconds = progress, sent, seconds
        self.counts: Counter[str] = Counter()
        self.told, self.next = 0, 0.0

    def tell(self, due: float, index: int) -> None:
        if due < self.next:
            return
        self.next = due + _SECONDS_BETWEEN_EVENTS
        news = self.sent[self.told :]
        self.told += len(news)
        self.counts.update(each.outcome for each in news)
        words = ", ".join(f"{self.counts[name]} {name.replace('_', ' ')}" for name in OUTCOMES if self.counts[name])
        answered = [each.latency for each in news if each.outcome == "answered"]
        figures = {"p95_ms": 1000 * float(np.percentile(answered, 95))} if answered else {}
        message = f"{index + 1} sent{', ' * bool(words)}{words}"
        self.progress(Event("load", message, due / (self.seconds or 1), self.seconds - due, figures))


def _rounds(random: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` positions below `size` in an order that is drawn: all of them, then all again."""
    rounds = [random.permutation(size) for _ in range(math.ceil(count / size))]
    return np.concatenate(rounds)[:count] if rounds else np.zeros(0, dtype=np.int64)


def _check(pictures: Sequence[bytes], labels: Sequence[str] | None, leave_early: float) -> None:
    if not pictures:
        raise SettingError("there are no pictures to send.")
    if labels is not None and len(labels) != len(pictures):
        raise SettingError(f"there are {len(labels)} labels for {len(pictures)} pictures: each needs one.")
    if not 0 <= leave_early <= 1:
        raise SettingError(f"leave_early is {leave_early:g}: it is a share, from 0 to 1.")


def check_positive(**values: float) -> None:
    """Raise SettingError for a value that is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise SettingError(f"{name} is {value:g}: it must be a finite number above 0.")
