"""The processes of one training: they join, agree on what is decided, and end together.

One process alone agrees with itself: everything here then does nothing, and costs nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from anyvit import errors
from anyvit.errors import AnyViTError, Interrupted, SettingError
from anyvit.training.checkpoint import load_tensors, tensors_to_bytes

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=1)  # for the first process to validate or to measure; one that died is noticed at once


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return all(name in os.environ for name in _VARIABLES)


def rank() -> int:
    """The number of this process; the first one, 0, decides, writes and speaks."""
    return distributed.get_rank() if _joined() else 0


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _joined() else 1


def agreed(decide: Callable[[], Any]) -> Any:
    """What the first process decides, in every process: a value that JSON holds. Its errors are everybody's too."""
    if count() == 1:
        return decide()
    if rank():
        told = json.loads(_broadcast(b""))
        if "error" in told:
            raise _error_from(told["error"])
        return told["value"]
    try:
        value = decide()
    except BaseException as error:
        _broadcast(json.dumps({"error": _described(error)}).encode())
        raise
    _broadcast(json.dumps({"value": value}).encode())
    return value


def most(*values: float) -> list[float]:
    """The largest of what the processes say, one by one: of 0 and 1, whether any says 1."""
    if count() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def shared(make: Callable[[], Any]) -> Any:
    """Like `agreed`, for tensors and plain values around them."""
    if count() == 1:
        return make()
    made: list[Any] = []
    agreed(lambda: made.append(make()))
    if rank():
        return load_tensors(io.BytesIO(_broadcast(b"")))
    _broadcast(tensors_to_bytes(made[0]))
    return made[0]


@contextmanager
def joined(*, wanted: bool = True) -> Iterator[None]:
    """Here the processes that torchrun has started work together. Whatever ends one of them ends them all.

    Messages between CPUs and between GPUs go side by side, so nobody's GPU waits for what another one decides.

    Raises:
        SettingError: torchrun has not started this process.
        AnyViTError: Another process has failed; `told` says that it is the one to say why.
    """
    if not wanted:
        yield
        return
    if not started_by_torchrun():
        raise SettingError("several processes are started by torchrun: torchrun --nproc-per-node 4 -m anyvit …")
    store, place, size = next(distributed.rendezvous("env://"))
    if size % (here := int(os.environ["LOCAL_WORLD_SIZE"])):
        raise SettingError(f"{here} of {size} processes run on this machine: start as many on each.")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=place, world_size=size, timeout=_PATIENCE)
    with _sigterm_interrupts():
        try:
            yield
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, where another process has failed: this one ends
            if store.add("failures", 1) > 1:
                told = _error_from(json.loads(store.get("failure")))
                told.told = True
                raise told from None
            store.set("failure", json.dumps(_described(error)))
            if _is_lost(error):
                raise _error_from(_described(error)) from error
            raise
        finally:
            distributed.destroy_process_group()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupted("stopped. The same command resumes it.")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _broadcast(content: bytes) -> bytes:
    """What the first process has."""
    length = torch.tensor([len(content)])
    distributed.broadcast(length, 0)
    data = torch.frombuffer(bytearray(content or bytes(int(length))), dtype=torch.uint8)
    distributed.broadcast(data, 0)
    return data.numpy().tobytes()


def _described(error: BaseException) -> Mapping[str, str]:
    kind = type(error).__name__
    if _is_lost(error):
        words = (
            "another process of the run is lost: killed, out of memory, or out of reach. The same command resumes it."
        )
        return {"kind": "AnyViTError", "words": words}
    if isinstance(error, AnyViTError):
        return {"kind": kind, "words": str(error)}
    if isinstance(error, KeyboardInterrupt):
        return {"kind": "Interrupted", "words": "interrupted."}
    return {"kind": "AnyViTError", "words": f"another process of the run has failed: {kind}: {error}"}


def _is_lost(error: BaseException | None) -> bool:
    """Whether it comes of a message to a process that is no longer there, and not of something that was said."""
    while error is not None:
        if isinstance(error, distributed.DistError) or re.search("gloo|NCCL|Connection closed", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _error_from(told: Mapping[str, str]) -> AnyViTError:
    kind = getattr(errors, told["kind"])
    return kind.__new__(kind, told["words"])
