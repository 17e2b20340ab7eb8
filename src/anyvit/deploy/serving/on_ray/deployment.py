"""The server as replicas on a Ray cluster: Ray Serve starts them, watches them, and shares the requests out.

    client -> Ray's proxy (`proxy.py`) -> replica (`replica.py`): app -> service -> engine process
                                           -> replica: …

Each replica is the whole server: its own controller decides which candidate answers, and what is turned away.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from anyvit.deploy.serving.http import DRAIN_S, KEEP_ALIVE_S, listening
from anyvit.deploy.serving.menu import Menu
from anyvit.deploy.serving.on_ray.cluster import cluster, see_room
from anyvit.deploy.serving.on_ray.options import ONGOING, READINESS_S, placement_of, scale_of, scaling
from anyvit.deploy.serving.on_ray.proxy import RETRY_S
from anyvit.deploy.serving.on_ray.replica import Replica
from anyvit.deploy.serving.on_ray.router import ReadyRouter
from anyvit.deploy.serving.settings import Settings
from anyvit.errors import AnyViTError, SettingError, retold
from anyvit.protocols import Event, Progress

NAME = "anyvit"
"""Of the application on the cluster; its one deployment is called Replica."""

NO_REPLICA_S = 30.0
"""For a request that finds no replica, beside the time for sending it."""

LEAVE_S = 15.0
"""For a replica to end, once its requests are answered."""

WATCH_S = 2.0
"""Between looks at the cluster."""

QUIET = {"log_level": "WARNING", "enable_access_log": False}


def serve_on_ray(
    settings: Settings, host: str, port: int, replicas: str, placement: str | None, progress: Progress
) -> None:
    """Deploy on the cluster that Ray finds, or on one that ends with this; serve until Ctrl-C or SIGTERM.

    Requests that have begun are finished then; a second signal does not wait for them.

    Args:
        settings: How the folder is served. It must be at the same path on each machine of the cluster.
        host: Address of the proxy, on the head of the cluster. `0.0.0.0` and `::`: each machine with replicas has one.
        port: 0: any that is free.
        replicas: How many, `2`, or from how many to how many, `1-4`, as load demands.
        placement: What a replica takes of its machine, `num_cpus=2, num_gpus=1, board=1`.
        progress: Told when it is deployed, where, and when replicas are lost.

    Raises:
        SettingError: `replicas` or `placement` cannot be read, the address is taken, or Ray Serve is.
        AnyViTError: What keeps the replicas from becoming ready; or the application is gone from the cluster.
    """
    least, most = scale_of(replicas)
    options = placement_of(placement)
    Menu.open(settings.folder, settings.candidates, settings.min_accuracy)  # what can be said at once
    settings = replace(settings, folder=str(Path(settings.folder).resolve()))
    with listening(host, port) as free:
        port = free.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with suppress(KeyboardInterrupt), cluster(settings.objective) as ours, _sigterm_as_ctrl_c():
        see_room(options, progress)
        with _ray_serve(host, port, settings, ours=ours):
            progress(Event("serve", f"starting {replicas} replica{'s' * (most > 1)} on Ray"))
            _deploy(settings, least, most, options)
            progress(Event("serve", f"{settings.folder} at {url} (page /, docs /docs); Ctrl-C ends"))
            try:
                _watch(progress)
            finally:
                serve.delete(NAME)  # what has begun is finished
    progress(Event("serve", "ended"))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ray_serve(host: str, port: int, settings: Settings, *, ours: bool) -> Iterator[None]:
    """Ray Serve at an address."""
    if serve.status().proxies:
        raise SettingError(
            "Ray Serve runs on this cluster already, at an address of its own. End it with `serve shutdown`, or name "
            "another cluster with RAY_ADDRESS."
        )
    http = {
        "host": host,
        "port": port,
        "request_timeout_s": settings.limits.seconds + settings.objective + NO_REPLICA_S,
        "keep_alive_timeout_s": KEEP_ALIVE_S,
    }
    try:
        serve.start("EveryNode" if host in ("0.0.0.0", "::") else "HeadOnly", http, logging_config=QUIET)
        yield
    finally:
        if not ours:  # else it ends with the cluster
            serve.shutdown()


def _deploy(settings: Settings, least: int, most: int, placement: Mapping[str, Any]) -> None:
    options: dict[str, Any] = {
        **scaling(least, most),
        "ray_actor_options": placement,
        "max_ongoing_requests": ONGOING,
        "max_queued_requests": ONGOING,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_S},
        "request_router_config": {
            "request_router_class": ReadyRouter,
            "request_routing_stats_period_s": READINESS_S,
        },
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": DRAIN_S + LEAVE_S,
        "max_constructor_retry_count": 1,  # a service tries several engines itself
        "logging_config": QUIET,
    }
    application = serve.deployment(name="Replica", **options)(Replica).bind(settings.to_json(), most)
    try:
        serve.run(application, name=NAME)
    except RuntimeError as error:
        raise _told_by_replica(error) from error


def _told_by_replica(error: RuntimeError) -> AnyViTError:
    """What a replica raised, from the text that Ray makes of it."""
    application = serve.status().applications.get(NAME)
    text = application.deployments["Replica"].message if application else ""
    ours = re.findall(r"^anyvit\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    return retold(*ours[-1]) if ours else AnyViTError(f"the replicas do not start: {text.strip() or error}")


def _watch(progress: Progress) -> None:
    """Say when replicas are lost and when they are back, until a signal comes."""
    before = None
    while True:
        application = serve.status().applications.get(NAME)
        if application is None:
            raise AnyViTError("the application is no longer on the cluster: somebody else has ended it.")
        states: Mapping[Any, int] = application.deployments["Replica"].replica_states
        running = states.get("RUNNING", 0)
        if running != before:
            progress(Event("serve", f"{running} replica{'s' * (running != 1)} ready"))
        before = running
        time.sleep(WATCH_S)
