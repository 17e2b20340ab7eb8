"""Memory that a function needs: the peak while it runs in a new process, over what the imported runtime holds.

Modules are imported and PyTorch's kernels touched before the count begins, so that the libraries' own pages stay out
of it. The peak is the kernel's high-water mark, started anew where the system allows it.
"""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anyvit.costs.fresh import Json, call_in_new_process, resolve
from anyvit.errors import AnyViTError


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory in bytes: the rise over the imported runtime, and that of the whole process."""

    rise: int
    process: int


def peak_memory(target: str, argument: Json = None) -> Memory:
    """The memory that the function `target`, "module:function", needs when a new process calls it with `argument`.

    What it returns is not kept; imports inside it count as memory it needs.

    Raises:
        AnyViTError: The function failed (see `call_in_new_process`), or the platform tells no peak.
    """
    return Memory(**call_in_new_process("anyvit.costs.memory:measure_here", {"target": target, "argument": argument}))


def measure_here(call: dict[str, Any]) -> dict[str, int]:
    """The same in this process, whose other work counts too: what `peak_memory` runs in the new one."""
    function = resolve(call["target"])
    _touch_runtime()
    gc.collect()
    with suppress(OSError):  # where it cannot be reset, the mark of the imports bounds the rise from above
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory()
    function(call["argument"])
    peak = _told("VmHWM") or _largest()
    return asdict(Memory(rise=max(peak - before, 0), process=peak))


def resident_memory() -> int:
    """Bytes that this process holds in memory now; where the system does not tell, the most it has held so far."""
    return _told("VmRSS") or _largest()


def _touch_runtime() -> None:
    """Run a tiny transformer, which takes the pages of PyTorch's code from disk to memory."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), layer).eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, 16, 16)).softmax(-1)


def _told(name: str) -> int | None:
    """A figure of Linux about this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def _largest() -> int:
    """The largest resident size of this process so far, in bytes, where Linux's own files are missing."""
    try:
        import resource
    except ImportError as error:
        raise AnyViTError(f"peak memory cannot be measured on {sys.platform}") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
