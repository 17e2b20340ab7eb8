"""AnyViT: one Vision Transformer, every budget.

The functions below are the public interface; each loads what it needs when it is first asked for, so that
`import anyvit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyvit.deploy.reference import load_reference as load_reference
    from anyvit.deploy.runtime import load as load
    from anyvit.jobs.design import design as design
    from anyvit.jobs.doctor import doctor as doctor
    from anyvit.jobs.evaluate import evaluate as evaluate
    from anyvit.jobs.export import export as export
    from anyvit.jobs.fit import fit as fit
    from anyvit.jobs.list import list as list
    from anyvit.jobs.loadtest import loadtest as loadtest
    from anyvit.jobs.measure import measure as measure
    from anyvit.jobs.predict import predict as predict
    from anyvit.jobs.quickstart import quickstart as quickstart
    from anyvit.jobs.serve import serve as serve
    from anyvit.jobs.shrink import shrink as shrink
    from anyvit.jobs.spread import spread as spread
    from anyvit.jobs.worker import worker as worker
    from anyvit.models.hydravit import elastic as elastic

__version__ = "0.1.0"

_HOMES = {
    "design": "anyvit.jobs.design",
    "doctor": "anyvit.jobs.doctor",
    "elastic": "anyvit.models.hydravit",
    "evaluate": "anyvit.jobs.evaluate",
    "export": "anyvit.jobs.export",
    "fit": "anyvit.jobs.fit",
    "list": "anyvit.jobs.list",
    "load": "anyvit.deploy.runtime",
    "load_reference": "anyvit.deploy.reference",
    "loadtest": "anyvit.jobs.loadtest",
    "measure": "anyvit.jobs.measure",
    "predict": "anyvit.jobs.predict",
    "quickstart": "anyvit.jobs.quickstart",
    "serve": "anyvit.jobs.serve",
    "shrink": "anyvit.jobs.shrink",
    "spread": "anyvit.jobs.spread",
    "worker": "anyvit.jobs.worker",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'anyvit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:  # type: ignore[valid-type]
    return sorted({*globals(), *_HOMES})
