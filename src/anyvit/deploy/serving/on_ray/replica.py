"""The server as Ray runs it: one process of the cluster, which builds it and keeps it until Ray ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve

from anyvit.deploy.serving.app import create_app
from anyvit.deploy.serving.garbage import spare_what_is_there
from anyvit.deploy.serving.settings import Settings, half_of_memory


@serve.ingress()
class Replica:
    """The whole server, with its own controller and engine. It starts and ends with the application's lifespan.

    A client that leaves is noticed here too: Ray's proxy cancels its request, and what was not computed yet is not.

    Args:
        settings: `Settings.to_json()`.
        share: Of the memory that may be held by default: one part in so many, for all replicas may be on one machine.
    """

    def __init__(self, settings: Mapping[str, Any], share: int) -> None:
        told = Settings.from_json(settings)
        memory = half_of_memory() / share if told.memory is None else told.memory
        self._limits = told.limits
        self._service = replace(told, memory=memory).service()
        self._service.when_ready = spare_what_is_there

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service, self._limits)

    async def check_health(self) -> None:
        """Ray asks for the first time before it gives requests to the replica: the answer waits until it is ready.

        Raises:
            AnyViTError: Why it never became ready.
        """
        while self._service.controller is None and self._service.failure is None:
            await asyncio.sleep(0.1)
        if self._service.failure:
            raise self._service.failure

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the proxy hears of the replica, so that requests go round it while its engine starts anew."""
        return {"ready": self._service.ready}
