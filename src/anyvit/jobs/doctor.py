"""Is this machine ready: versions, devices, threads, fast paths, and what an extra would add."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from anyvit.costs.device import this_device
from anyvit.protocols import Device


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `ok` is None where it is neither good nor bad."""

    name: str
    found: str
    ok: bool | None = None


def doctor() -> list[Check]:
    """Versions, devices, threads, fast paths and runtimes; what is missing and how to install it."""
    import torch

    device = this_device()
    checks = [
        Check("python", platform.python_version(), True),
        Check("processor", f"{device.processor}, {device.cores} cores"),
        Check("threads", f"{torch.get_num_threads()} in PyTorch; promises are made for 1 unless --threads says more"),
        Check("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        *_fast_paths(device.features),
        *_runtimes(this_device("cuda") if torch.cuda.is_available() else device),
    ]
    return checks + [_requirement(line) for line in requires("anyvit") or ()]


def _fast_paths(features: tuple[str, ...]) -> list[Check]:
    from anyvit.backends.precision import FAST_BFLOAT16, FAST_INT8

    paths = {
        "bfloat16": (FAST_BFLOAT16, "matrix products in half the time"),
        "int8": (FAST_INT8, "fast 8-bit integer products"),
        "avx512": ({"avx512f"}, "wide vectors"),
    }
    return [
        Check(f"fast {name}", gain if wanted & set(features) else f"not on this processor ({gain})")
        for name, (wanted, gain) in paths.items()
    ]


def _runtimes(device: Device) -> list[Check]:
    """The precisions that each backend offers on `device`, and what an extra or a tool would add."""
    from anyvit.backends import BACKENDS

    checks = []
    for backend in BACKENDS:
        precisions = [setting.get("precision", "float32") for setting in backend.settings(device)]
        offered = ", ".join(precisions) or f"nothing on {device.kind}"
        more = backend.absent(device)
        checks.append(
            Check(f"runtime {backend.name}", f"{offered}; {more}" if more else offered, bool(precisions) or None)
        )
    return checks


def _requirement(line: str) -> Check:
    """A line of the package's own requirements: `grpcio>=1.70; extra == "spread"`."""
    requirement = Requirement(line)
    extra = _extra_of(requirement)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        remedy = f"pip install 'anyvit[{extra}]'" if extra else "pip install anyvit"
        return Check(requirement.name, f"not installed: {remedy}", None if extra else False)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Check(requirement.name, found if fits else f"{found}, needs {requirement.specifier}", fits)


def _extra_of(requirement: Requirement) -> str | None:
    """The extra that brings a requirement; None for those of the core."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    extras = metadata("anyvit").get_all("Provides-Extra") or []
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), None)
