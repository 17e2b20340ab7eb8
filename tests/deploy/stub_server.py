"""A stand-in for `anyvit serve`: it says whatever a test wants, on a free port of this machine."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def prediction(label="cat", candidate="full-torch"):
    """The answer to a request of one picture."""
    times = {"waited_ms": 1.5, "computed_ms": 4.0}
    one = {"name": "image 0", "label": label, "probability": 0.9, "top": [[label, 0.9]], "error": None}
    return {"predictions": [{**one, "candidate": candidate, "accuracy": 0.8, **times}], "total_ms": 6.0}


class Stub:
    """What the server does, to be set; and what it has heard.

    Attributes:
        answer: The body of a request in; JSON, or a status and JSON, out. It may be a coroutine function.
        ready: Statuses of `/readyz`, one after the other; the last one stays.
        model: What `/v1/model` says.
        heard: Headers and body of each request.
    """

    def __init__(self):
        self.port = None
        self.reset()

    def reset(self):
        self.answer = lambda body: prediction()
        self.ready = [200]
        self.model = {"classes": ["dark", "light"], "slo_ms": 5000.0, "preprocessing": {"image_size": 8}}
        self.heard = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def app(self):
        async def predict(request):
            body = await request.body()
            self.heard.append((request.headers, body))
            told = self.answer(body)
            told = await told if asyncio.iscoroutine(told) else told
            if isinstance(told, bytes):
                return Response(told)
            status, content = told if isinstance(told, tuple) else (200, told)
            return JSONResponse(content, status)

        async def ready(request):
            status = self.ready.pop(0) if len(self.ready) > 1 else self.ready[0]
            return JSONResponse({"status": "ready"}, status)

        async def model(request):
            return JSONResponse(self.model)

        return Starlette(
            routes=[
                Route("/v1/predict", predict, methods=["POST"]),
                Route("/readyz", ready),
                Route("/v1/model", model),
            ]
        )


@contextmanager
def serving(stub):
    """Run it in a thread."""
    config = uvicorn.Config(stub.app(), log_level="critical", lifespan="off", ws="none")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        stub.port = listening.getsockname()[1]
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield stub
        server.should_exit = server.force_exit = True
        thread.join(10)


def free_port():
    """One at which nobody answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]
