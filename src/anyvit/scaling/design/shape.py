"""A shape of plain ViT as others need it: what builds it, what it is called, and what it is held to be worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from anyvit.costs.counts import Specification
from anyvit.models.shaped import SHAPED
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.form import Form

PLAIN = Candidate((), Step("torch"))
"""A model as it is, in PyTorch."""


@dataclass(frozen=True)
class Worth:
    """An accuracy, or a score that stands in for one: higher is better."""

    value: float
    standard_error: float  # over images, seeds or draws; 0 where there was one


def form_of(spec: Specification) -> Form:
    """What builds the plain ViT of a shape."""
    return Form(SHAPED, asdict(spec))


def name_of(spec: Specification) -> str:
    """A shape in a few letters: `i224p16d12h3x64m4`."""
    return f"i{spec.image_size}p{spec.patch_size}d{spec.depth}h{spec.heads}x{spec.head_dim}m{spec.mlp_ratio:g}"
