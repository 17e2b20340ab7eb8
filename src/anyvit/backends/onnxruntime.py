"""ONNX Runtime, in float32 or int8.

Only products with weights become int8, and channel by channel: the products inside the attention, softmax and norms
stay float32. Measured on DeiT-Small's shape, one thread, on a processor with VNNI: ranges calibrated on images gain no
time over those found at each call (43 and 39 ms; float32 takes 106), which is done in one step with the product.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyvit.backends.graph_backend import (
    FLOAT32,
    INT8_DYNAMIC,
    INT8_STATIC,
    LARGE,
    GraphBackend,
    as_array,
)
from anyvit.backends.precision import fast_int8
from anyvit.protocols import UNCHANGED, Device, Runner, Setting

FILE = "model.onnx"

# Eight bits times eight overflow in the sums of x86 without VNNI. Linux tells whether a processor has it, and int8 is
# offered only there; elsewhere weights of seven bits are safe.
REDUCE_RANGE = platform.machine().lower() in ("x86_64", "amd64") and platform.system() != "Linux"


@dataclass(frozen=True, eq=False)
class OnnxRunner:
    """A session, and the graph that it was made of."""

    graph: bytes
    session: Any

    def __call__(self, images: Tensor, /) -> Tensor:
        answers = [self.session.run(None, {"images": as_array(part)})[0] for part in images.split(LARGE)]
        return torch.from_numpy(np.concatenate(answers))


class OnnxRuntime(GraphBackend):
    """One session for any number of images."""

    name, title = "onnxruntime", "ONNX Runtime"
    precisions = (FLOAT32, INT8_DYNAMIC, INT8_STATIC)

    def settings(self, device: Device) -> Sequence[Setting]:
        """int8 only where the processor computes in it."""
        if device.kind != "cpu":
            return []
        int8 = (INT8_DYNAMIC, INT8_STATIC) if fast_int8(device) else ()
        return [UNCHANGED, *({"precision": precision} for precision in int8)]

    def absent(self, device: Device) -> str | None:
        return None

    def save(self, runner: Runner, folder: Path) -> None:
        assert isinstance(runner, OnnxRunner)
        (folder / FILE).write_bytes(runner.graph)

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        with self._building(model):
            return _runner((folder / FILE).read_bytes(), setting.get("threads", 1))

    def _build(self, graph: bytes, precision: str, threads: int, batch: int, images: np.ndarray) -> Runner:
        return _runner(graph if precision == FLOAT32 else _quantized(graph, precision, images), threads)


def _runner(graph: bytes, threads: int) -> OnnxRunner:
    import onnxruntime  # slow to load, and only needed here

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors alone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other runners want the cores too
    return OnnxRunner(graph, onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]))


def _quantized(graph: bytes, precision: str, images: np.ndarray) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    model = onnx.load_from_string(graph)
    del model.graph.value_info[:]  # shapes that the exporter noted, of weights before it turned them
    how = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "per_channel": True,
        "reduce_range": REDUCE_RANGE,
        "weight_type": QuantType.QInt8,
    }
    with tempfile.TemporaryDirectory(prefix="anyvit-") as folder:
        target = Path(folder, FILE)
        if precision == INT8_DYNAMIC:
            quantize_dynamic(model, target, **how)  # products with weights only, unless told otherwise
        else:
            weights = {tensor.name for tensor in model.graph.initializer}
            quantize_static(
                model,
                target,
                _Reader(images),
                activation_type=QuantType.QUInt8,
                nodes_to_quantize=[node.name for node in model.graph.node if weights.intersection(node.input[1:2])],
                # sums leave the products in float32, which fuses with what comes behind and is more exact
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
                **how,
            )
        return target.read_bytes()


class _Reader:
    """Calibration images one by one, as ONNX Runtime asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._inputs: Iterator[dict[str, np.ndarray]] = iter([{"images": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)
