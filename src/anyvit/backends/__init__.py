"""How a model runs. A new backend is a new file and one line in `BACKENDS`."""

from __future__ import annotations

from anyvit.backends.cuda_graphs import CudaGraphs
from anyvit.backends.onnxruntime import OnnxRuntime
from anyvit.backends.openvino import OpenVino
from anyvit.backends.torch_compile import TorchCompile
from anyvit.backends.torch_eager import TorchEager
from anyvit.errors import SettingError, unknown
from anyvit.protocols import Backend

__all__ = ["BACKENDS", "backend_named"]

BACKENDS: tuple[Backend, ...] = (TorchEager(), TorchCompile(), CudaGraphs(), OnnxRuntime(), OpenVino())


def backend_named(name: str) -> Backend:
    """The backend of that name.

    Raises:
        SettingError: There is none.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise SettingError(unknown("backend", name, (backend.name for backend in BACKENDS)))
