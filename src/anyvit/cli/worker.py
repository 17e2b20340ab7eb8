"""`anyvit worker`: what a board runs."""

from __future__ import annotations

from typing import Annotated

import typer

from anyvit.cli.predict import TlsCa, TokenFile
from anyvit.cli.show import say

PartFile = Annotated[str, typer.Argument(help="A file that `anyvit spread` has written, placed/part-2.safetensors.")]
Listen = Annotated[str, typer.Option(help="The address to serve at; beyond this machine, a token is needed.")]
TlsCert = Annotated[str | None, typer.Option(help="The certificate of this worker, PEM. [no encryption]")]
TlsKey = Annotated[str | None, typer.Option(help="Its key, PEM.")]
Threads = Annotated[int, typer.Option(help="Threads of the model.")]
MaxMessage = Annotated[str, typer.Option(help="The size of the largest message that is read.")]
Queue = Annotated[int, typer.Option(help="Questions that may wait for their turn.")]


def worker(
    part: PartFile,
    listen: Listen = "127.0.0.1:7002",
    token_file: TokenFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    threads: Threads = 1,
    max_message: MaxMessage = "16MB",
    queue: Queue = 16,
) -> None:
    """Answer with a part of a spread model until Ctrl-C or SIGTERM. A new part is taken by starting again."""
    import anyvit

    anyvit.worker(
        part,
        listen=listen,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_ca=tls_ca,
        threads=threads,
        max_message=max_message,
        queue=queue,
        progress=lambda event: say(event.message),
    )
