"""Where candidates become runners, each built once: building, not answering, is the dear part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from anyvit.backends import backend_named
from anyvit.models import share
from anyvit.protocols import Runner
from anyvit.scaling.candidate import Candidate, Cascade
from anyvit.scaling.cascade import assemble
from anyvit.scaling.shrink import lever_named

if TYPE_CHECKING:
    from torch import Tensor, nn


def reshape(model: nn.Module, candidate: Candidate, *, images: Tensor | None = None) -> nn.Module:
    """`model` with the candidate's levers applied. It may share storage with `model`."""
    for step in candidate.levers:
        model = lever_named(step.name).apply(model, step.setting, images=images)
    return model


def prepare(model: nn.Module, candidate: Candidate, example: Tensor, *, images: Tensor | None = None) -> Runner:
    """The runner of a candidate for batches like `example` (B, C, H, W). Its weights are those of `model`."""
    return Workshop(model, example, images).runner(candidate)


class Workshop:
    """Builds the candidates of one model. Those of the same levers share a module, and so whatever is made of it.

    Args:
        model: Trained, or not: then its runners tell times alone. Changed meanwhile, its runners may be stale.
        example: A batch (B, C, H, W) like those to come; any number of images is answered.
        images: Preprocessed images (N, C, H, W) of the training split, where a lever or a precision needs some.
        tuned: By id of a tuned candidate the weights that its levers' shape was tuned to.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        images: Tensor | None = None,
        tuned: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        self.model, self.example, self.images, self.tuned = model, example, images, tuned
        self._shapes: dict[str, nn.Module] = {}
        self._runners: dict[str, Runner] = {}

    def shape(self, candidate: Candidate) -> nn.Module:
        """The model with the levers of a candidate, in evaluation mode."""
        key = candidate.id if candidate.tuned else str(candidate.levers)
        if key not in self._shapes:
            shaped = share(reshape(self.model, candidate, images=self.images)).eval()
            if candidate.tuned:
                shaped.load_state_dict(self.tuned[candidate.id], assign=True)
            self._shapes[key] = shaped
        return self._shapes[key]

    def runner(self, candidate: Candidate | Cascade) -> Runner:
        """The runner of a candidate, or of a cascade over those of its parts, built when it is first asked for."""
        return assemble(candidate, self._part)

    def _part(self, candidate: Candidate) -> Runner:
        if candidate.id not in self._runners:
            backend, setting = backend_named(candidate.backend.name), candidate.backend.setting
            self._runners[candidate.id] = backend.prepare(
                self.shape(candidate), setting, self.example, images=self.images
            )
        return self._runners[candidate.id]

    def release(self, keep: Collection[str] = ()) -> None:
        """Forget all shapes, and all runners but those of the ids to `keep`, for memory."""
        self._shapes.clear()
        self._runners = {id: runner for id, runner in self._runners.items() if id in keep}
