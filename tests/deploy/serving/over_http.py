"""The server of the tiny bundle on a real socket, with an engine that lives in the test, and a client of it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

for library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extra serve")

from anyvit.deploy.serving import calibration  # noqa: E402
from anyvit.deploy.serving.app import create_app  # noqa: E402
from anyvit.deploy.serving.http import Server  # noqa: E402
from anyvit.deploy.serving.intake import Limits  # noqa: E402
from tests.deploy.serving.fake import FakeEngine, service  # noqa: E402
from tests.deploy.tiny import digits  # noqa: E402

SIZES = (1, 2, 4, 8)
PATIENCE_S = 60.0
"""The machine may be busy: nothing here takes long, and nothing is concluded from how long it takes."""


class GatedEngine(FakeEngine):
    """Starts and computes when the test lets it.

    Attributes:
        closed: Batches wait inside.
        shut: It does not start.
        inside: Batches that wait inside, or are computed.
        deadly: With so many batches from now on, it dies.
    """

    closed, shut, inside, deadly = False, False, 0, 0

    async def start(self, progress=None):
        while self.shut:
            await asyncio.sleep(0.005)
        return await super().start(progress)

    async def run(self, id, pixels, *, patience, worst=False):
        if worst:
            return await super().run(id, pixels, patience=patience, worst=worst)
        self.inside += 1
        try:
            while self.closed:
                await asyncio.sleep(0.005)
            self.die, self.deadly = self.deadly > 0, max(self.deadly - 1, 0)
            return await super().run(id, pixels, patience=patience)
        finally:
            self.inside -= 1


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self):
        return json.loads(self.body, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


class Client:
    """Asks a server, over a new connection each time."""

    def __init__(self, port, service, engine, intake):
        self.port, self.service, self.engine, self.intake = port, service, engine, intake

    def ask(self, path="/v1/predict", body=None, type=None, *, method=None, chunked=False, **headers):
        """`headers` are written like keywords: `Anyvit_Deadline`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(
                method or ("GET" if body is None else "POST"),
                path,
                iter([body]) if chunked else body,
                named | ({"Content-Type": type} if type is not None else {}),
                encode_chunked=chunked,
            )
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def predict(self, content, query="", **headers):
        """Ask about one image, as bytes."""
        return self.ask(f"/v1/predict?{query}", content, "image/png", **headers)

    @contextmanager
    def raw(self, *parts):
        """A connection that has sent these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            for part in parts:
                connection.sendall(part)
            yield connection

    def count(self, name):
        """A figure of the metrics, by its name and labels; 0 where it was never set."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"anyvit_{name} "))

    def until(self, true):
        """Wait until something holds."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, "it never came to be"
            time.sleep(0.005)

    def see_at_rest(self):
        """No request left anything behind: no bytes, no image that waits, none that is expected."""
        controller = self.service.controller
        self.until(lambda: (self.intake.held, controller.waiting, controller.expected) == (0, [], 0))


@contextmanager
def serving(bundle, *, objective=20.0, engine=None, ready=True, **limits):
    """A server of a bundle, calibrated as its engine is told to be; `limits` are those of requests."""
    engine = engine or GatedEngine(bundle)
    limits = Limits(**{"seconds": PATIENCE_S, **limits})
    serves = service(bundle, objective=objective, engine=engine, most_pixels=limits.pixels)
    app = create_app(serves, limits)
    server = Server(app, "127.0.0.1", 0)
    client = Client(int(server.url.rpartition(":")[2]), serves, engine, app.state.intake)
    thread = threading.Thread(target=server.serve_until_told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "measure", _as_told)
        thread.start()
        try:
            client.until(lambda: server.started)
            if ready:
                client.until(lambda: client.ask("/readyz").status == 200)
            yield client
        finally:
            engine.closed = engine.shut = False
            server.end()
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


async def _as_told(engine, ids, *_):
    """What `calibration.measure` would find on a machine that is never busy."""
    times = {id: {size: engine.seconds[id] * size for size in SIZES} for id in ids}
    return calibration.Times(times, times)


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def picture(index=0, kind="PNG"):
    """A digit of the test images, as a file."""
    return encoded(digits().splits["test"].images.load(index), kind)


def blank(width, height):
    """A picture of few bytes, however large."""
    return encoded(Image.new("1", (width, height)))


def form(*parts, boundary="frontier", end=True):
    """A multipart body: `parts` are (name, file name or None, content)."""
    lines = bytearray()
    for name, file, content in parts:
        file = "" if file is None else f'; filename="{file}"'
        lines += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        lines += (content.encode() if isinstance(content, str) else content) + b"\r\n"
    return bytes(lines) + (f"--{boundary}--\r\n".encode() if end else b"")


FORM = "multipart/form-data; boundary=frontier"
