"""What the runtimes that take a model's graph have in common: their settings, and how a runner comes about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from anyvit.backends.graph import onnx_graph, quiet, why_not_exported
from anyvit.backends.precision import precision_of
from anyvit.errors import AnyViTError, MissingExtraError, ModelError, SettingError
from anyvit.protocols import Needs, Runner, Setting

FLOAT32, BFLOAT16, INT8_DYNAMIC, INT8_STATIC = "float32", "bfloat16", "int8-dynamic", "int8-static"

CALIBRATION_IMAGES = 32
"""As many of the images given are used, evenly spread: the time that calibration takes grows with them."""

LARGE = 32
"""Images that are answered in one go, at most: more would only take more memory."""


class GraphBackend(ABC):
    """A runtime on the processor for the ONNX graph of any model that can be exported.

    Settings are `{}`, which is float32, or `{"precision": …}` with one of `precisions`, and may carry `threads`.
    """

    name: str
    title: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]

    def why_not(self, model: nn.Module) -> str | None:
        return why_not_exported(model)

    def needs(self, setting: Setting) -> Needs:
        return Needs.IMAGES if setting.get("precision") == INT8_STATIC else Needs.NOTHING

    def prepare(self, model: nn.Module, setting: Setting, example: Tensor, *, images: Tensor | None = None) -> Runner:
        """A runner that answers any number of images, and is fastest for as many as `example` has.

        Args:
            model: Its graph is made once; the runner does not follow changes of its weights.
            setting: A precision, and threads.
            example: A batch (B, C, H, W) like those to come.
            images: To calibrate int8-static on, (N, C, H, W).

        Raises:
            SettingError: No such setting, or one that needs `images` without them, or `images` of another kind.
            ModelError: The model cannot be exported, or the runtime does not take it.
        """
        precision, threads = precision_of(self.name, setting, self.precisions), setting.get("threads", 1)
        calibration = np.empty(0, np.float32)
        if precision == INT8_STATIC:
            if images is None or not len(images):
                raise SettingError(f"{INT8_STATIC} of the {self.name} backend is calibrated on images: give some")
            _check(images, example)
            calibration = _spread(images)
        if reason := self.why_not(model):
            raise ModelError(f"{type(model).__name__} does not run in {self.title}: {reason}")
        with self._building(model):
            return self._build(onnx_graph(model, example), precision, threads, len(example), calibration)

    @abstractmethod
    def _build(self, graph: bytes, precision: str, threads: int, batch: int, images: np.ndarray) -> Runner:
        """The runner of an ONNX graph; `images` is empty where none are needed."""

    @contextmanager
    def _building(self, model: nn.Module) -> Iterator[None]:
        """Libraries are quiet inside, and what they cannot do becomes one line."""
        try:
            with quiet():
                yield
        except MissingExtraError:
            raise
        except Exception as error:
            raise ModelError(f"{type(model).__name__} does not run in {self.title}: {_line(error)}") from error


def _check(images: Tensor, example: Tensor) -> None:
    if images.shape[1:] != example.shape[1:] or not images.is_floating_point() or not images.isfinite().all():
        raise SettingError(
            f"calibration takes preprocessed images like the example, finite numbers of shape (N, "
            f"{', '.join(map(str, example.shape[1:]))}): got {images.dtype} of shape {tuple(images.shape)}"
        )


def _spread(images: Tensor) -> np.ndarray:
    chosen = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).round().astype(np.int64)
    return as_array(images[chosen])


def as_array(images: Tensor) -> np.ndarray:
    """The images as runtimes take them; in the same memory where they are so already."""
    return np.ascontiguousarray(images.detach().float().cpu().numpy())


def _line(error: BaseException) -> str:
    """What went wrong first, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
    return first if isinstance(error, AnyViTError) else f"{type(error).__name__}: {first}"
