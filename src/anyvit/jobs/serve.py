"""One model that keeps its latency promise while the load changes: a server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from anyvit.costs.budget import Budget
from anyvit.costs.units import BYTES, TIME, read_amount
from anyvit.errors import MissingExtraError, SettingError
from anyvit.protocols import Event, Progress, silent

if TYPE_CHECKING:
    from anyvit.deploy.serving.settings import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
SIZES = "MB, kB, GB, B, MiB, KiB, GiB"


def serve(
    bundle: str,
    *,
    slo: str = "100ms",
    host: str = "127.0.0.1",
    port: int = 8000,
    candidates: str | None = None,
    min_accuracy: str | None = None,
    memory: str | None = None,
    max_body: str = "32MB",
    max_pixels: int = 50_000_000,
    max_images: int = 64,
    client_timeout: str = "10s",
    ray: bool = False,
    replicas: str = "1",
    placement: str | None = None,
    progress: Progress = silent,
) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM; requests that have begun are finished then.

    Under load, smaller candidates of the bundle answer, so that the 99th percentile of the latency stays inside the
    objective; when the load falls, the most accurate one answers again. Where even the fastest cannot keep up, requests
    are turned away (429) instead of being late.

    Args:
        bundle: The folder that `fit`, `shrink` or `spread` has written.
        slo: The objective: the longest time from the arrival of a request to its answer, `50ms`.
        host: The address to serve at. `127.0.0.1` is for this machine alone.
        port: The port; 0: any that is free.
        candidates: Ids of the candidates that may answer, separated by commas. None: all that are worth it.
        min_accuracy: Never answer with a candidate below this validation accuracy, `90%`.
        memory: Bytes that the process which computes may hold; candidates that do not fit are left out. None: half of
            what is to be had.
        max_body: The largest request that is read.
        max_pixels: The largest image, in pixels.
        max_images: Images a request.
        client_timeout: How long a client may take to send a request.
        ray: Deploy with Ray Serve, on the cluster that Ray finds, or on this machine.
        replicas: With Ray: how many, `2`, or from how many to how many, `1-4`, as load demands.
        placement: With Ray: what a replica takes of its machine, `num_cpus=2, num_gpus=1, board=1`.
        progress: Called with news: when it is ready, and where.

    Raises:
        BundleError: The bundle is damaged, newer than this AnyViT reads, or not one at all.
        SettingError: A value is outside its range, a candidate is unknown, or the address is taken.
        BudgetError: No candidate is accurate, or fast, enough.
        MissingExtraError: The extra `serve`, or `ray`, is not installed.
    """
    _see_that_installed(*LIBRARIES, extra="serve")
    settings = _settings(
        bundle, slo, candidates, min_accuracy, memory, max_body, max_pixels, max_images, client_timeout
    )
    if ray:
        _see_that_installed("ray.serve", extra="ray")
        from anyvit.deploy.serving.on_ray.deployment import serve_on_ray

        _say_who_may_ask(host, progress)
        serve_on_ray(settings, host, port, replicas, placement, progress)
        return
    if replicas != "1" or placement is not None:
        raise SettingError("--replicas and --placement are Ray's: add --ray, or leave them out.")
    _serve_here(settings, host, port, progress)


def _serve_here(settings: Settings, host: str, port: int, progress: Progress) -> None:
    from anyvit.deploy.serving.app import create_app
    from anyvit.deploy.serving.garbage import spare_what_is_there
    from anyvit.deploy.serving.http import Server

    service = settings.service(progress)
    server = Server(create_app(service, settings.limits), host, port)
    service.when_failed, service.when_ready = server.end, spare_what_is_there
    _say_who_may_ask(host, progress)
    progress(Event("serve", f"{settings.folder} at {server.url} (page /, docs /docs); Ctrl-C ends"))
    server.serve_until_told()
    if service.failure:
        raise service.failure
    progress(Event("serve", "ended"))


def _say_who_may_ask(host: str, progress: Progress) -> None:
    if host not in LOOPBACK:
        progress(Event("serve", f"anybody who reaches {host} may ask: put a proxy that asks who they are before it"))


def _settings(
    bundle: str,
    slo: str,
    candidates: str | None,
    min_accuracy: str | None,
    memory: str | None,
    max_body: str,
    max_pixels: int,
    max_images: int,
    client_timeout: str,
) -> Settings:
    from anyvit.deploy.serving.intake import LEAST_HELD, Limits
    from anyvit.deploy.serving.settings import Settings

    for name, value in (("max_pixels", max_pixels), ("max_images", max_images)):
        if value < 1:
            raise SettingError(f"{name} is {value}: it must be at least 1.")
    body = int(_positive("max_body", read_amount(max_body, BYTES, SIZES, name="max_body"), max_body))
    limits = Limits(
        body=body,
        pixels=max_pixels,
        images=max_images,
        seconds=_positive(
            "client_timeout", read_amount(client_timeout, TIME, "s, ms, min", name="client_timeout"), client_timeout
        ),
        held=max(8 * body, LEAST_HELD),
    )
    accuracy = Budget.parse(f"accuracy>={min_accuracy}").accuracy_bound() if min_accuracy is not None else None
    return Settings(
        bundle,
        _positive("slo", read_amount(slo, TIME, "ms, s, us, min", name="slo"), slo),
        tuple(name.strip() for name in candidates.split(",")) if candidates is not None else None,
        accuracy.value if accuracy else None,
        None if memory is None else _positive("memory", read_amount(memory, BYTES, SIZES, name="memory"), memory),
        limits,
    )


def _positive(name: str, value: float, text: str) -> float:
    if not 0 < value < float("inf"):
        raise SettingError(f"{name} is {text}: it must be a finite amount above 0.")
    return value


def _see_that_installed(*libraries: str, extra: str) -> None:
    for library in libraries:
        try:
            import_module(library)
        except ImportError as error:
            raise MissingExtraError(library.partition(".")[0].replace("_", "-"), extra) from error
