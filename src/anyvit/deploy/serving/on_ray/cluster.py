"""The Ray cluster that replicas run on: one that is there already, or one of this machine for as long as it serves."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from anyvit.deploy.serving.on_ray.proxy import OBJECTIVE, middlewares
from anyvit.errors import AnyViTError
from anyvit.protocols import Event, Progress

AROUND_PROXY = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The variable of the environment that tells Ray's proxy what to put around itself."""


@contextmanager
def cluster(objective: float) -> Iterator[bool]:
    """Be connected to the cluster that is running, or else to a new one on this machine; whether it ends with this.

    Args:
        objective: Seconds from the arrival of a request to its answer.
    """
    if ray.is_initialized():
        yield False
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        "runtime_env": {
            "env_vars": {AROUND_PROXY: f"{middlewares.__module__}:{middlewares.__name__}", OBJECTIVE: str(objective)}
        },
    }
    try:
        yield _connect(options)
    finally:
        ray.shutdown()


def _connect(options: Mapping[str, Any]) -> bool:
    address = os.environ.get("RAY_ADDRESS", "")
    if address != "local":
        try:
            ray.init(address or "auto", **options)
        except ConnectionError as error:
            if address:
                raise AnyViTError(
                    f"no Ray cluster answers at RAY_ADDRESS={address}: start one, or unset it."
                ) from error
        else:
            return False
    ray.init("local", **options)
    return True


def see_room(placement: Mapping[str, Any], progress: Progress) -> None:
    """Say so where no machine of the cluster is large enough for a replica: one may join yet."""
    wanted = {"CPU": placement["num_cpus"], "GPU": placement["num_gpus"], **placement["resources"]}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(name, 0.0) >= amount for name, amount in wanted.items()) for machine in machines):
        words = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items() if amount)
        progress(Event("serve", f"no machine of the cluster has {words}: replicas wait until one joins"))
