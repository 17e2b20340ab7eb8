"""20,000 requests with faults among them: each gets one answer or one clean error, and memory does not grow.

    python benchmarks/serving_faults.py runs/cifar10 --data cifar10/

Three parts, on one core, with the clients on another:

* a Poisson stream in which one request in ten is broken (a truncated file, bytes that are no image, an unknown type, a
  huge picture in few bytes, too many images, JSON with NaN), while clients trickle their bodies or leave in the middle,
  and the computing process is killed now and then; at the end SIGTERM, in the middle of the load.
* twice what the largest candidate carries, half of the clients leaving early: how many batches were computed of which
  nobody waited for one image.
* what the level did meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from anyvit.costs.units import TIME, read_amount
from anyvit.deploy.load import poisson
from anyvit.deploy.load_report import summarize
from interleaved import write_result
from servers import (
    Pictures,
    Server,
    anyvit_serve,
    computed_alone,
    free_port,
    machine,
    pictures_for,
    send,
    started,
    stay_on_the_last_core,
    wait_until_ready,
)

FAULTY = 0.1
RATE = 120.0
TYPES = {"bad_request", "too_large", "unsupported_media_type", "unreadable_image"}
EXPECTED = {200, 400, 413, 415, 422, 429, 500, 503, 504}


@dataclass
class Log:
    """What became of requests."""

    ended: Counter[str] = field(default_factory=Counter)
    unclean: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    engine: list[int] = field(default_factory=list)
    after_term: Counter[str] = field(default_factory=Counter)


def faults(picture: bytes) -> Sequence[tuple[str, bytes, str]]:
    """Name, body and content type of broken requests."""
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    many = {"images": [base64.b64encode(picture).decode()] * 100}
    return (
        ("truncated", picture[: len(picture) // 2], "image/jpeg"),
        ("no image", os.urandom(500), "application/octet-stream"),
        ("unknown type", picture, "text/html"),
        ("bomb", huge.getvalue(), "image/png"),
        ("too many", json.dumps(many).encode(), "application/json"),
        ("NaN", b'{"image": NaN}', "application/json"),
        ("empty", b"", "image/png"),
        ("garbage form", b"--x\r\nnothing", "multipart/form-data; boundary=x"),
    )


async def one(session: aiohttp.ClientSession, url: str, body: Any, kind: str, log: Log, name: str) -> None:
    """Send a request, and see that exactly one well-formed answer comes."""
    try:
        async with session.post(url, data=body, headers={"Content-Type": kind}) as answer:
            content = await answer.json()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        log.ended[f"{name}: {type(error).__name__}"] += 1
        log.unclean.append(f"{name}: {error!r}"[:200])
        return
    clean = answer.status == 200 and "predictions" in content
    clean |= set(content) == {"type", "message", "hint"} and answer.status in EXPECTED
    log.ended[f"{name}: {answer.status}"] += 1
    if not clean:
        log.unclean.append(f"{name}: {answer.status} {content}"[:200])


async def trickle(body: bytes) -> Any:
    """A body that comes slowly."""
    for place in range(0, len(body), 200):
        yield body[place : place + 200]
        await asyncio.sleep(0.02)


async def leave(url: str, body: bytes, log: Log) -> None:
    """Send half of a body and hang up."""
    host, port = url.removeprefix("http://").split("/")[0].split(":")
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[: len(body) // 2])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
    log.ended["left in the middle"] += 1


async def soak(server: Server, pictures: Pictures, count: int, kills: int) -> Log:
    """`count` requests at a steady rate, faults among them; the engine is killed now and then."""
    log, draw, url = Log(), random.Random(0), f"{server.url}/v1/predict"
    broken, running = faults(pictures.contents[0]), set[asyncio.Task[None]]()
    kill_at = {count * (n + 1) // (kills + 2) for n in range(kills)}
    limits = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
        begun = time.monotonic()
        for number, at in enumerate(poisson(RATE, 2 * count / RATE, seed=0)[:count]):
            await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
            picture = draw.choice(pictures.contents)
            if draw.random() < FAULTY:
                name, body, kind = draw.choice(broken)
                coming = one(session, url, body, kind, log, name)
            elif draw.random() < 0.01:
                coming = leave(url, picture, log)
            elif draw.random() < 0.01:
                coming = one(session, url, trickle(picture), "image/jpeg", log, "slow client")
            else:
                coming = one(session, url, picture, "image/jpeg", log, "well-formed")
            task = asyncio.create_task(coming)
            running.add(task)
            task.add_done_callback(running.discard)
            if number in kill_at:
                with suppress(IndexError, ProcessLookupError):
                    os.kill(children(server)[0], signal.SIGKILL)
            if number % (count // 40) == 0:
                log.resident.append(resident(server.process.pid))
                log.engine.append(sum(map(resident, children(server)[:1])))
        await asyncio.gather(*running)
    return log


async def end_under_load(server: Server, pictures: Pictures, log: Log) -> int:
    """SIGTERM while requests are on their way: they are answered, later ones find nobody. Gives the exit status."""
    url = f"{server.url}/v1/predict"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def ask(after: float) -> None:
            await asyncio.sleep(after)
            try:
                async with session.post(url, data=pictures.contents[0], headers={"Content-Type": "image/jpeg"}) as got:
                    await got.json()
                    log.after_term[str(got.status)] += 1
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
                log.after_term["nobody there"] += 1
            except (aiohttp.ClientError, ValueError) as error:
                log.after_term[f"unclean: {type(error).__name__}"] += 1

        asking = [asyncio.create_task(ask(n / 200)) for n in range(200)]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*asking)
    return await asyncio.to_thread(server.process.wait, 60)


def leaving(server: Server, pictures: Pictures, slo: float, seconds: float) -> dict[str, Any]:
    """Twice what the largest candidate carries, half of the clients leaving after a tenth of the objective."""
    rate = 2 * computed_alone(server.served()[0])
    names = ("anyvit_unread_batches_total", "anyvit_batch_images_count", "anyvit_level_switches_total")
    before = [server.metric(name) for name in names]
    arrivals = poisson(rate, seconds, seed=3)
    sent = send(server, pictures, arrivals, leave_early=0.5, leave_after=0.1 * slo)
    unread, batches, switches = (server.metric(name) - b for name, b in zip(names, before, strict=True))
    report = summarize(sent, slo, seconds=seconds)
    return {
        "rate": rate,
        "requests": len(sent),
        "left": report.outcomes["left"],
        "in_time_of_those_who_stayed": report.inside,
        "batches": batches,
        "batches_without_a_reader": unread,
        "level_switches": switches,
        "seconds": seconds,
    }


def children(server: Server) -> list[int]:
    """The processes that it has started."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> int:
    """Bytes that a process holds."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def main() -> None:
    """All parts, and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True, help="labelled images, of which the test split is sent")
    parser.add_argument("--slo", default="100ms")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    asked = parser.parse_args()
    count = 400 if asked.quick else asked.requests
    port = free_port()
    with started(anyvit_serve(asked.bundle, asked.slo, port), port) as server:
        stay_on_the_last_core()
        pictures = pictures_for(server, asked.data)
        slo = read_amount(asked.slo, TIME, "ms", name="slo")
        left = leaving(server, pictures, slo, 5.0 if asked.quick else 30.0)
        print(left, flush=True)
        begun = time.monotonic()
        log = asyncio.run(soak(server, pictures, count, asked.kills))
        seconds = time.monotonic() - begun
        wait_until_ready(server)
        metrics = {"engine_deaths": server.metric("anyvit_engine_deaths_total")}
        status = asyncio.run(end_under_load(server, pictures, log))
    half = len(log.resident) // 2
    result = {
        **machine(),
        "slo_ms": 1e3 * slo,
        "requests": count,
        "seconds": seconds,
        "ended": dict(sorted(log.ended.items())),
        "ended_in_all": log.ended.total(),
        "unclean": log.unclean,
        "resident_bytes_along_the_way": log.resident,
        "growth_of_the_second_half": float(np.median(log.resident[-5:]) / np.median(log.resident[half : half + 5])),
        "engine_bytes_along_the_way": log.engine,
        **metrics,
        "sigterm": {"exit_status": status, "requests": dict(log.after_term)},
        "leaving": left,
    }
    print({key: result[key] for key in ("ended", "unclean", "growth_of_the_second_half", "sigterm")})
    write_result("serving_faults", result, quick=asked.quick)


if __name__ == "__main__":
    main()
