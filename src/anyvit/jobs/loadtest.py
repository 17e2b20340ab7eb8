"""How a server bears a load: requests at a given rate, and what becomes of them."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from anyvit.costs.units import TIME, read_amount
from anyvit.deploy.load import SHAPES, Sent, fire_and_wait, import_client
from anyvit.deploy.load_report import LoadReport, summarize
from anyvit.errors import AnyViTError, Interrupted, SettingError, unknown
from anyvit.files import write_text
from anyvit.jobs.load_pictures import Pictures, labelled_pictures, made_up_pictures, unlabelled_pictures
from anyvit.jobs.time_limit import seconds_of
from anyvit.protocols import Event, Progress, silent

MOST_REQUESTS = 1_000_000
SECONDS_TO_BE_READY = 60.0
SECONDS_TO_BE_THERE = 10.0
"""For which a server that does not answer at all is waited for: it may be starting."""

_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_TO_ANSWER = 10.0


def loadtest(
    url: str,
    *,
    data: str | None = None,
    images: str | None = None,
    rate: float = 10.0,
    duration: str = "30s",
    shape: str = "poisson",
    deadline: str | None = None,
    slo: str | None = None,
    seed: int = 0,
    out: str | None = None,
    progress: Progress = silent,
) -> LoadReport:
    """Send requests to a server of `serve` at a rate that does not depend on its answers, and report what came.

    Ctrl-C ends it; the report is then about what was sent so far.

    Args:
        url: Of the server, `http://127.0.0.1:8000`. Nothing else is talked to. It is waited for until it is ready, up
            to a minute.
        data: Labelled images of any format, to send and to score the answers by: their test split, or their val split;
            where they have neither, the test that `fit` holds out with its own seed.
        images: A file, a folder or a pattern of images without labels. Without `data` and `images`, pictures are made
            up.
        rate: Requests a second, in the mean.
        duration: How long they are sent, `30s`, `5m`.
        shape: How they arrive: `poisson`, each on its own; `bursts`, for a fifth of the time at three times the rate
            and at half of it otherwise, in periods of about ten seconds.
        deadline: How long an answer may take, as the server is told, `30ms`. None: the server's own.
        slo: The objective: an answer within it is in time, `50ms`. None: the server's own.
        seed: Of when requests are sent, and of what.
        out: A JSON file for the report and a line for each request.
        progress: Called with news, and with how far it is.

    Raises:
        SettingError: `url` is none, or a value is outside its range.
        DataError: Images that cannot be opened, or a class that the model which is served does not know.
        AnyViTError: The server cannot be reached, is not ready in time, or is none of ours.
        MissingExtraError: aiohttp is not installed.
        Interrupted: Ctrl-C before anything was sent.
    """
    import_client()
    address = _address(url)
    seconds, arrivals = _arrivals(rate, duration, shape, seed)
    allowed = None if deadline is None else _amount("deadline", deadline)
    objective = None if slo is None else _amount("slo", slo)
    target = None if out is None else _target(out)
    model = _model(url, address, progress)
    if objective is None:
        objective = _objective(url, model)
    pictures = _pictures(model, data, images, len(arrivals), seed, progress)
    progress(Event("load", f"{len(arrivals)} requests in {seconds:g} s to {url}"))
    sent = fire_and_wait(
        url, pictures.contents, arrivals, labels=pictures.labels, seed=seed, deadline=allowed, progress=progress
    )
    if not sent:
        raise Interrupted("stopped before anything was sent.")
    report = _report(sent, arrivals, objective, seconds, pictures.notes)
    if target is not None:
        asked = {"url": url, "data": data, "images": images, "rate": rate, "duration": duration, "shape": shape}
        asked |= {"deadline": deadline, "slo": slo, "seed": seed}
        write_text(target, _document(asked, report, sent, pictures.names))
    return report


def _report(
    sent: Sequence[Sent], arrivals: np.ndarray, slo: float, seconds: float, notes: tuple[str, ...]
) -> LoadReport:
    stopped = len(sent) < len(arrivals)
    report = summarize(sent, slo, seconds=None if stopped else seconds)
    if stopped:
        notes = (f"It was stopped after {len(sent)} of {len(arrivals)} requests.", *notes)
    return replace(report, notes=(*report.notes, *notes))


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port, or of brackets
        sound = False
    if not sound or parts.query or parts.fragment or parts.username:
        raise SettingError(f"{url!r} is not the address of a server. Write it like http://127.0.0.1:8000.")
    return parts


def _arrivals(rate: float, duration: str, shape: str, seed: int) -> tuple[float, np.ndarray]:
    if shape not in SHAPES:
        raise SettingError(unknown("shape", shape, SHAPES))
    if seed < 0:
        raise SettingError(f"seed is {seed}: it must be at least 0.")
    if not (math.isfinite(rate) and rate > 0):
        raise SettingError(f"rate is {rate:g}: it must be a finite number of requests a second, above 0.")
    seconds = seconds_of(duration)
    if rate * seconds > MOST_REQUESTS:
        raise SettingError(
            f"{rate:g} requests a second for {duration} are {rate * seconds:,.0f}, above {MOST_REQUESTS:,}: "
            "lower the rate or the duration."
        )
    arrivals = SHAPES[shape](rate, seconds, seed=seed)
    if not len(arrivals):
        raise SettingError(
            f"at {rate:g} requests a second, none came within {duration}: raise the rate or the duration."
        )
    return seconds, arrivals


def _amount(name: str, text: str) -> float:
    seconds = read_amount(text, TIME, "ms, s, us, min", name=name)
    if not (math.isfinite(seconds) and seconds > 0):
        raise SettingError(f"{name} is {text}: it must be a time above 0, such as 50ms.")
    return seconds


def _target(out: str) -> Path:
    target = Path(out).expanduser()
    if target.is_dir():
        raise SettingError(f"{out} is a folder. Name a file, {target / 'load.json'}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _model(url: str, address: SplitResult, progress: Progress) -> Mapping[str, Any]:
    """What a server says of its model, once it is ready."""
    _wait_until_ready(url, address, progress)
    status, body = _get(address, "/v1/model")
    try:
        model = json.loads(body)
        if status == 200 and isinstance(model["classes"], list):
            return model
    except (ValueError, KeyError, TypeError):
        pass
    raise _stranger(url, f"answers {status} to /v1/model and does not name its classes")


def _wait_until_ready(url: str, address: SplitResult, progress: Progress) -> None:
    began, told = time.monotonic(), ""
    while True:
        waited = time.monotonic() - began
        try:
            status, _ = _get(address, "/readyz")
        except (OSError, HTTPException) as error:
            if waited > SECONDS_TO_BE_THERE or isinstance(error, socket.gaierror):
                raise AnyViTError(
                    f"{url} cannot be reached ({error}). Start one with `anyvit serve BUNDLE`, or mend the address."
                ) from error
            news = f"{url} does not answer yet"
        else:
            if status == 200:
                return
            if status != 503:
                raise _stranger(url, f"answers {status} to /readyz")
            if waited > SECONDS_TO_BE_READY:
                raise AnyViTError(f"{url} is not ready after {waited:.0f} s. What it is waiting for, it says itself.")
            news = f"{url} is not ready yet"
        if news != told:
            progress(Event("load", news))
            told = news
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _get(address: SplitResult, path: str) -> tuple[int, bytes]:
    """Status and body. No proxy is asked, and no redirection followed."""
    kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
    with closing(kind(address.hostname or "", address.port, timeout=_SECONDS_TO_ANSWER)) as connection:
        connection.request("GET", address.path.rstrip("/") + path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def _stranger(url: str, why: str) -> AnyViTError:
    return AnyViTError(f"{url} {why}, so it is no server of `anyvit serve`. Name the address that one has told.")


def _objective(url: str, model: Mapping[str, Any]) -> float:
    told = model.get("slo_ms")
    if not isinstance(told, int | float) or not told > 0:
        raise SettingError(f"{url} tells no objective of its own. Give one: slo 50ms.")
    return told / 1000


def _pictures(
    model: Mapping[str, Any], data: str | None, images: str | None, count: int, seed: int, progress: Progress
) -> Pictures:
    if data is not None and images is not None:
        raise SettingError("data and images exclude each other: data has labels, images have none. Name one of them.")
    if data is not None:
        return labelled_pictures(data, model["classes"], count, seed=seed, progress=progress)
    if images is not None:
        return unlabelled_pictures(images, count, seed=seed, progress=progress)
    return made_up_pictures(int((model.get("preprocessing") or {}).get("image_size", 224)), seed=seed)


def _document(asked: Mapping[str, Any], report: LoadReport, sent: Sequence[Sent], names: Sequence[str]) -> str:
    """Everything as JSON, a line for each request."""
    columns = [each.name for each in fields(Sent)]
    parts = {
        "asked": asked,
        "report": report.to_json(),
        "pictures": names,
        "columns": columns,
    }
    head = "".join(f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)},\n" for name, part in parts.items())
    lines = ",\n".join(
        json.dumps([_rounded(getattr(each, name)) for name in columns], allow_nan=False) for each in sent
    )
    return f'{{\n{head}"requests": [\n{lines}\n]\n}}\n'


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
