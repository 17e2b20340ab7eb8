"""OpenVINO on the processor, in float32, bfloat16 or int8.

int8 comes from NNCF (the extra `int8`), which also quantizes the products inside the attention and smooths what is fed
to them. What stays float in it runs in bfloat16 where the processor computes in that: measured on DeiT-Small's shape,
one thread, that takes 3 to 5 % less time at batch 1 and 9 % less at 16, and agrees with PyTorch as well as float32.

A graph compiled for one number of images is faster than one for any: int8 by 12 %. So a runner has one for the batch
it was made for, and, once so many come, one for large batches; what is left over of a batch is filled up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyvit.backends.graph_backend import (
    BFLOAT16,
    FLOAT32,
    INT8_STATIC,
    LARGE,
    GraphBackend,
    as_array,
)
from anyvit.backends.precision import FAST_BFLOAT16, fast_int8, may_have, precision_of
from anyvit.errors import MissingExtraError
from anyvit.protocols import UNCHANGED, Device, Runner, Setting

FILE = "model.xml"
BATCH = ["anyvit", "batch"]
"""Where a saved graph says how many images it is compiled for."""


class OpenVinoRunner:
    """A graph, compiled for its own batch and, when that is asked for, for large ones.

    Args:
        graph: An openvino.Model for any number of images, which names its own batch.
        precision: What is float in it is computed in: "f32" or "bf16".
        threads: How many compute.
    """

    def __init__(self, graph: Any, precision: str, threads: int) -> None:
        self.graph = graph
        self.batch = int(graph.get_rt_info(BATCH).value)
        self._options = {
            "INFERENCE_PRECISION_HINT": precision,  # by default it is bfloat16 where the processor has that
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # several runners share the cores, and timing chooses them itself
        }
        self._requests = {self.batch: self._compiled(self.batch)}

    def __call__(self, images: Tensor, /) -> Tensor:
        rest, answers = as_array(images), []
        while len(rest):
            size = LARGE if len(rest) >= LARGE > self.batch else self.batch
            if size not in self._requests:
                self._requests[size] = self._compiled(size)
            missing = size - len(rest)
            filled = np.pad(rest, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing > 0 else rest[:size]
            answer = self._requests[size].infer([filled], share_inputs=True)[0]
            answers.append(answer[: len(rest)].copy())  # the next call writes over it
            rest = rest[size:]
        return torch.from_numpy(np.concatenate(answers))

    def _compiled(self, size: int) -> Any:
        fixed = self.graph.clone()  # over the same weights
        fixed.reshape([size, *(axis.get_length() for axis in list(fixed.input().partial_shape)[1:])])
        return core().compile_model(fixed, "CPU", self._options).create_infer_request()


class OpenVino(GraphBackend):
    """Graphs compiled for one number of images."""

    name, title = "openvino", "OpenVINO"
    precisions = (FLOAT32, BFLOAT16, INT8_STATIC)

    def settings(self, device: Device) -> Sequence[Setting]:
        """bfloat16 and int8 only where the processor computes in them; int8 where NNCF is installed."""
        if device.kind != "cpu":
            return []
        offered = {BFLOAT16: may_have(device, FAST_BFLOAT16), INT8_STATIC: fast_int8(device) and _has_nncf()}
        return [UNCHANGED, *({"precision": precision} for precision, wanted in offered.items() if wanted)]

    def absent(self, device: Device) -> str | None:
        lacking = fast_int8(device) and not _has_nncf()
        return "int8-static in OpenVINO, by NNCF: pip install 'anyvit[int8]'" if lacking else None

    def save(self, runner: Runner, folder: Path) -> None:
        import openvino

        assert isinstance(runner, OpenVinoRunner)
        openvino.save_model(runner.graph, folder / FILE, compress_to_fp16=False)

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        precision, threads = precision_of(self.name, setting, self.precisions), setting.get("threads", 1)
        with self._building(model):
            return OpenVinoRunner(core().read_model(folder / FILE), _hint(precision), threads)

    def _build(self, graph: bytes, precision: str, threads: int, batch: int, images: np.ndarray) -> Runner:
        read = core().read_model(graph)
        if precision == INT8_STATIC:
            read = _quantized(read, images)
        for place, operation in enumerate(read.get_ordered_ops()):  # names are counted over the whole process
            operation.set_friendly_name(f"{operation.get_type_name()}_{place}")
        read.set_rt_info(str(batch), BATCH)
        return OpenVinoRunner(read, _hint(precision), threads)


@cache
def core() -> Any:
    """The one core of this process.

    A core that goes gives the thread back the signal stack that was there before it. With several, which go in any
    order, that one may be gone already, and the next signal that Python handles ends the process.
    """
    import openvino  # slow to load, and only needed here

    return openvino.Core()


def _hint(precision: str) -> str:
    """What OpenVINO computes in, where it is not in int8."""
    if precision == INT8_STATIC:
        able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bf16" if "BF16" in able else "f32"
    return "bf16" if precision == BFLOAT16 else "f32"


def _has_nncf() -> bool:
    return find_spec("nncf") is not None


def _quantized(graph: Any, images: np.ndarray) -> Any:
    nncf = _nncf()
    return nncf.quantize(
        graph,
        nncf.Dataset([image[None] for image in images]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
    )


def _nncf() -> Any:
    """The library, which would report its use over the network unless told not to when it is imported."""
    if not _has_nncf():
        raise MissingExtraError("nncf", "int8")
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    return nncf
