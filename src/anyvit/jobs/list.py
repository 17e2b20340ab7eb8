"""What there is: systems, models, levers, backends, objectives, methods, transports, one line each."""

from __future__ import annotations

import builtins
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType

from anyvit.backends import BACKENDS
from anyvit.costs import timing
from anyvit.deploy.reference import FAMILIES
from anyvit.deploy.spread.transports import TRANSPORTS
from anyvit.errors import SettingError, unknown
from anyvit.models import VARIANTS
from anyvit.scaling.design import METHODS
from anyvit.scaling.shrink import LEVERS
from anyvit.scaling.spread import class_split
from anyvit.training.objectives import OBJECTIVES


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that AnyViT has."""

    kind: str
    name: str
    summary: str


def list(kind: str | None = None) -> builtins.list[Entry]:
    """Systems, models, levers, backends, objectives, methods of design and transports, or one of these kinds.

    Raises:
        SettingError: There is no such kind.
    """
    entries = [
        *(Entry("system", name, _summary(module)) for name, module in sorted(_systems().items())),
        *(Entry("model", name, summary) for name, summary in VARIANTS.items()),
        *(Entry("lever", lever.name, _summary(sys.modules[type(lever).__module__])) for lever in LEVERS),
        *(Entry("backend", backend.name, _summary(sys.modules[type(backend).__module__])) for backend in BACKENDS),
        *(
            Entry("objective", name, _summary(sys.modules[objective.__module__]))
            for name, objective in OBJECTIVES.items()
        ),
        *(Entry("method", name, _summary(sys.modules[method.find.__module__])) for name, method in METHODS.items()),
        *(Entry("transport", name, f"to boards, by {engine.library}") for name, engine in TRANSPORTS.items()),
    ]
    kinds = builtins.list(dict.fromkeys(entry.kind for entry in entries))
    if kind is None:
        return entries
    if kind.removesuffix("s") not in kinds:
        raise SettingError(unknown("kind", kind, [f"{known}s" for known in kinds]))
    return [entry for entry in entries if entry.kind == kind.removesuffix("s")]


def _systems() -> dict[str, ModuleType]:
    """Those whose checkpoints are read, and those that have none."""
    families = {name: sys.modules[family.__module__] for name, family in FAMILIES.items()}
    return families | {"edvit": class_split, "hwscaling": timing}


def _summary(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]
