"""PyTorch's kernels recorded once as a CUDA graph and replayed: no time between them on small batches. Needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anyvit.backends import precision
from anyvit.backends.torch_eager import TorchRunner, eager_runner, try_out
from anyvit.errors import ModelError
from anyvit.protocols import Device, Needs, Runner, Setting

PRECISIONS = ("float32", "bfloat16", "float16")

WARM_UP = 3
"""Calls before the recording: libraries choose their kernels and take their memory in the first ones."""

MOST_GRAPHS = 8
"""Shapes that are recorded; each holds the memory of one call. Batches of more shapes are answered eagerly."""


class Recording(NamedTuple):
    """A graph, the tensor that it reads, and the one that it writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    answer: Tensor


class GraphRunner:
    """Replays one graph a shape, recorded when the shape comes for the first time. One call at a time.

    The weights must stay where they are: a graph knows their addresses.
    """

    def __init__(self, eager: TorchRunner) -> None:
        self._eager = eager
        self._recordings: dict[torch.Size, Recording] = {}
        self._lock = Lock()

    @torch.inference_mode()
    def __call__(self, images: Tensor, /) -> Tensor:
        with self._lock, torch.cuda.device(self._eager.device):
            recording = self._recordings.get(images.shape)
            if recording is None:
                if len(self._recordings) == MOST_GRAPHS:
                    return self._eager(images)
                recording = self._recordings[images.shape] = self._record(images)
            recording.images.copy_(images)
            recording.graph.replay()
            return recording.answer.clone()  # the next replay writes over it

    def _record(self, images: Tensor) -> Recording:
        given = images.to(self._eager.device, self._eager.dtype, copy=True).contiguous()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._eager(given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may load images meanwhile
            answer = self._eager(given)
        return Recording(graph, given, answer)


class CudaGraphs:
    """Runs models on a GPU whose work depends on the shape of the images alone, as that of all ViTs here does."""

    name = "cuda-graphs"

    def why_not(self, model: nn.Module) -> str | None:
        if not torch.cuda.is_available():
            return "CUDA graphs need a CUDA device, and this machine has none"
        kind = precision.device_of(model).type
        return None if kind == "cuda" else f"CUDA graphs need a model on the GPU, and this one is on the {kind}"

    def settings(self, device: Device) -> Sequence[Setting]:
        return precision.float_precisions(device) if device.kind == "cuda" else []

    def absent(self, device: Device) -> str | None:
        return None

    def needs(self, setting: Setting) -> Needs:
        return Needs.NOTHING

    def prepare(self, model: nn.Module, setting: Setting, example: Tensor, *, images: Tensor | None = None) -> Runner:
        """A runner that has recorded batches like `example`. It shares the weights of `model` in float32.

        Raises:
            SettingError: An unknown setting.
            ModelError: There is no GPU, the model is not on it, or its work cannot be recorded.
        """
        runner = self._runner(model, setting)
        try_out(runner, example, f"CUDA graphs cannot record {type(model).__name__}")
        return runner

    def save(self, runner: Runner, folder: Path) -> None:
        """Nothing to write: a graph is addresses in this process."""

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        """A runner that records at its first batch. Raises as `prepare` does."""
        return self._runner(model, setting)

    def _runner(self, model: nn.Module, setting: Setting) -> GraphRunner:
        precision.precision_of(self.name, setting, PRECISIONS)
        if reason := self.why_not(model):
            raise ModelError(reason)
        return GraphRunner(eager_runner(self.name, model, setting))
