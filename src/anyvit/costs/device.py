"""The machine at hand: what it is called, what it can do, and which versions it runs."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from anyvit.errors import SettingError, unknown
from anyvit.protocols import Device

_FEATURES = {
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),  # Arm
}
"""What decides how fast a matrix product runs, as Linux spells it."""


def this_device(kind: str = "cpu") -> Device:
    """The device of this kind, as PyTorch names it: "cpu", "cuda" or "mps".

    Raises:
        SettingError: PyTorch has no such device here.
    """
    if kind == "cpu":
        return Device("cpu", _processor(), available_cores(), _features(), _versions())
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(kind):
        raise SettingError(unknown("device", kind, [name for name, here in present.items() if here]))
    if kind == "mps":
        return Device("mps", _processor(), available_cores(), (), _versions())
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    versions = {**_versions(), "cuda": torch.version.cuda or torch.version.hip or "?"}
    return Device("cuda", card.name, card.multi_processor_count, (f"sm_{card.major}{card.minor}",), versions)


def default_threads(kind: str = "cpu") -> int:
    """Threads of a timing that names none: one on the processor, where neighbours are then felt least."""
    return 1 if kind == "cpu" else available_cores()


def available_cores() -> int:
    """The cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_state() -> dict[str, float]:
    """Clock of the first core in MHz and temperature of the first sensor in °C, each where it can be read."""
    sources = {
        "mhz": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e-3),
        "celsius": ("/sys/class/thermal/thermal_zone0/temp", 1e-3),
    }
    state = {}
    for name, (path, scale) in sources.items():
        try:
            state[name] = int(Path(path).read_text()) * scale
        except (OSError, ValueError):
            continue
    return state


@cache
def _processor() -> str:
    if platform.system() == "Darwin":
        told = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return told.stdout.strip() or platform.machine()
    return _cpuinfo().get("model name") or platform.processor() or platform.machine() or "unknown processor"


@cache
def _features() -> tuple[str, ...]:
    cpuinfo = _cpuinfo()
    flags = cpuinfo.get("flags") or cpuinfo.get("Features") or ""
    return tuple(sorted(_FEATURES & set(flags.split())))


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says about the first processor; elsewhere nothing."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("anyvit", "timm", "torch", "onnxruntime", "openvino", "torchao"):
        with suppress(PackageNotFoundError):  # that of an extra
            versions[package] = version(package)
    return versions
