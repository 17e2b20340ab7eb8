"""Which replica gets a request. Ray copies this file into its proxy whole; what is to last there is in `proxy`."""

from __future__ import annotations

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from anyvit.deploy.serving.on_ray import proxy


class ReadyRouter(FIFOMixin, RequestRouter):
    """Of two replicas that can answer, the one with fewer requests; where none can, one that says so."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        proxy.known.replicas = len(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        ready = [replica for replica in candidate_replicas if replica.routing_stats.get("ready", True)]
        among = ready or candidate_replicas
        return [random.sample(among, min(2, len(among)))]
