"""The server over HTTP: routes, and how answers and errors are written down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from anyvit import __version__
from anyvit.data.decode import TooManyPixelsError
from anyvit.deploy.prediction import top_of
from anyvit.deploy.serving import problems
from anyvit.deploy.serving.intake import Asked, Intake, Limits
from anyvit.deploy.serving.menu import Menu
from anyvit.deploy.serving.openapi import ERRORS, PREDICT
from anyvit.deploy.serving.problems import Problem
from anyvit.deploy.serving.service import Said, Service
from anyvit.errors import AnyViTError, BudgetError, DataError, SettingError

PAGE = Path(__file__).parent / "page"
ONLY_OURS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"}
CLIENT_LEFT = 499
"""Of no standard, but what others write down too."""


def create_app(service: Service, limits: Limits) -> FastAPI:
    """The application around a service, which starts and ends with it.

    Args:
        service: Answers.
        limits: What a request may have.
    """

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(title="AnyViT", version=__version__, lifespan=alive, docs_url=None, redoc_url=None)
    for kind, handler in ((Problem, _problem), (HTTPException, _no_route), (Exception, _unforeseen)):
        app.add_exception_handler(kind, handler)
    app.state.intake = Intake(limits, service.image_bytes)
    _add_predict(app, service, app.state.intake)
    _add_questions(app, service)
    _add_pages(app)
    return app


def _add_predict(app: FastAPI, service: Service, intake: Intake) -> None:
    @app.post("/v1/predict", openapi_extra=PREDICT, responses=ERRORS, tags=["predict"])
    async def predict(request: Request) -> Response:
        """What is on these images? Each answer says which candidate gave it, and how long it waited and computed."""
        begun = time.monotonic()
        try:
            async with intake.reading(request) as asked:
                answering = service.answer(asked.images, deadline=asked.deadline, budget=asked.budget)
                response = _answer(service, asked, await _unless_left(request, answering), begun)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_LEFT)
        except (Problem, AnyViTError) as error:
            response = _to_response(error if isinstance(error, Problem) else _as_problem(error, service.menu))
        except Exception:
            service.telemetry.request(500)
            raise
        service.telemetry.request(response.status_code)
        return response


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", tags=["model"])
    async def model() -> Response:
        """Task, classes, preprocessing, and the candidates with their costs and accuracies."""
        return _json(_described(service))

    @app.get("/v1/load", tags=["model"])
    async def load() -> Response:
        """The last two minutes, second by second: load, latency, and which candidates answered."""
        return _json(service.telemetry.load(ready=service.ready))

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Response:
        """The server is alive."""
        return _json({"status": "alive"})

    @app.get("/readyz", tags=["health"], responses={503: ERRORS[503]})
    async def readyz() -> Response:
        """The model answers."""
        if service.ready:
            return _json({"status": "ready"})
        return _to_response(problems.not_ready("the model is not ready to answer yet", 2.0))

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Prometheus text: requests, latencies, queue, batches, candidates, what was shed."""
        return Response(service.telemetry.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    def page(name: str) -> Callable[[], Any]:
        async def show() -> Response:
            return FileResponse(PAGE / name, headers=ONLY_OURS)

        return show

    app.get("/", include_in_schema=False)(page("index.html"))
    app.get("/docs", include_in_schema=False)(page("docs.html"))
    for file in sorted(PAGE.iterdir()):
        app.get(f"/page/{file.name}", include_in_schema=False)(page(file.name))


async def _unless_left(
    request: Request, answering: Coroutine[Any, Any, list[Said | DataError]]
) -> list[Said | DataError]:
    """Await the answers; where the client leaves first, what was not computed yet is not.

    Raises:
        ClientDisconnect: It did.
    """
    answers, gone = asyncio.create_task(answering), asyncio.create_task(_left(request))
    try:
        await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return answers.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if answers.cancel():
            await asyncio.wait((answers,))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(service: Service, asked: Asked, said: list[Said | DataError], begun: float) -> Response:
    unread = [each for each in said if isinstance(each, DataError)]
    if len(unread) == len(said):
        raise Problem(
            422,
            "unreadable_image",
            f"{asked.names[0]} ({unread[0]})" if len(said) == 1 else f"none of {len(said)} images can be read",
            "Send JPEG, PNG, WebP, BMP, TIFF or PPM, whole files.",
        )
    accuracies = {result.id: result.accuracy for result in service.menu.results}
    predictions = [
        _unreadable(name, each) if isinstance(each, DataError) else _predicted(service, name, each, asked, accuracies)
        for name, each in zip(asked.names, said, strict=True)
    ]
    return _json({"predictions": predictions, "total_ms": _ms(time.monotonic() - begun)})


def _predicted(
    service: Service, name: str, said: Said, asked: Asked, accuracies: dict[str, float | None]
) -> dict[str, Any]:
    top = top_of(said.probabilities, service.menu.classes, asked.top_k)
    return {
        "name": name,
        "label": top[0][0],
        "probability": top[0][1],
        "top": top,
        "error": None,
        "candidate": said.candidate,
        "accuracy": accuracies.get(said.candidate),
        "waited_ms": _ms(said.waited_s),
        "computed_ms": _ms(said.computed_s),
    }


def _unreadable(name: str, error: DataError) -> dict[str, Any]:
    empty = dict.fromkeys(("candidate", "accuracy", "waited_ms", "computed_ms"))
    return {"name": name, "label": None, "probability": None, "top": [], "error": f"{name} ({error})", **empty}


def _described(service: Service) -> dict[str, Any]:
    described = service.menu.to_json()
    times = service.controller.times if service.controller else None
    for candidate in described["candidates"]:
        sizes = times.sizes(candidate["id"]) if times and candidate["served"] else ()
        batches = {str(size): _ms(times.table(candidate["id"], size)) for size in sizes} if times else {}
        candidate["batch_ms"] = batches
    return {**described, "slo_ms": 1e3 * service.objective}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _as_problem(error: AnyViTError, menu: Menu) -> Problem:
    words = str(error).replace(str(menu.source.folder), "this server")  # where it lies is nobody's business
    if isinstance(error, TooManyPixelsError):
        return problems.too_large(words, "Send a smaller image; the server's --max-pixels says what it takes.")
    if isinstance(error, BudgetError):
        return Problem(422, "budget_not_met", words, "GET /v1/model tells what each candidate costs.")
    if isinstance(error, SettingError):
        return problems.bad_request(words, "A budget is written like latency<=5ms, accuracy>=0.9.")
    return problems.engine_failed(words)


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _to_response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: ("not_found", f"there is nothing at {request.url.path}"), 405: ("method_not_allowed", "")}
    type, message = words.get(error.status_code, ("bad_request", str(error.detail)))
    message = message or f"{request.url.path} does not take {request.method}"
    response = _to_response(Problem(error.status_code, type, message, "GET /docs tells what there is."))
    response.headers.update(error.headers or {})
    return response


async def _unforeseen(_: Request, error: Exception) -> Response:
    return _to_response(Problem(500, "internal", type(error).__name__, "Look into the server's log."))


def _to_response(problem: Problem) -> Response:
    return _json(problem.to_json(), problem.status, problem.headers)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # `replace`: what a client sends may hold halves of characters, which UTF-8 cannot
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(errors="replace"), status, headers, "application/json")
