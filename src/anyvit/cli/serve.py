"""`anyvit serve`: one model that keeps its latency promise while the load changes."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.predict import BundleOrPlaced
from anyvit.cli.progress import ShowProgress

Slo = Annotated[str, typer.Option(help="The objective: time from a request to its answer, 50ms.")]
Host = Annotated[str, typer.Option(help="The address to serve at; 127.0.0.1 is for this machine alone.")]
Port = Annotated[int, typer.Option(help="The port; 0 is any that is free.")]
Candidates = Annotated[str | None, typer.Option(help="Who may answer, ids separated by commas. [all worth it]")]
MinAccuracy = Annotated[str | None, typer.Option(help="Never answer below this validation accuracy, 90%.")]
Memory = Annotated[str | None, typer.Option(help="What the computing process may hold, 2GB. [half of the free memory]")]
MaxBody = Annotated[str, typer.Option(help="The largest request that is read.")]
MaxPixels = Annotated[int, typer.Option(help="The largest image, in pixels.")]
MaxImages = Annotated[int, typer.Option(help="Images a request.")]
ClientTimeout = Annotated[str, typer.Option(help="How long a client may take to send a request.")]
Ray = Annotated[bool, typer.Option("--ray", help="Deploy with Ray Serve.")]
Replicas = Annotated[str, typer.Option(help="With --ray: how many, 2, or 1-4 as load demands.")]
Placement = Annotated[
    str | None, typer.Option(help="With --ray: what a replica takes of its machine, num_cpus=2, board=1.")
]


def serve(
    bundle: BundleOrPlaced,
    slo: Slo = "100ms",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    candidates: Candidates = None,
    min_accuracy: MinAccuracy = None,
    memory: Memory = None,
    max_body: MaxBody = "32MB",
    max_pixels: MaxPixels = 50_000_000,
    max_images: MaxImages = 64,
    client_timeout: ClientTimeout = "10s",
    ray: Ray = False,
    replicas: Replicas = "1",
    placement: Placement = None,
) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM, with smaller candidates while the load is high."""
    import anyvit

    with ShowProgress() as progress:
        anyvit.serve(
            bundle,
            slo=slo,
            host=host,
            port=port,
            candidates=candidates,
            min_accuracy=min_accuracy,
            memory=memory,
            max_body=max_body,
            max_pixels=max_pixels,
            max_images=max_images,
            client_timeout=client_timeout,
            ray=ray,
            replicas=replicas,
            placement=placement,
            progress=progress,
        )
