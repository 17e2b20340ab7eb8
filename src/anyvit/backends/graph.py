"""The graph of a model in ONNX: what runtimes other than PyTorch, and exports, are made of."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyvit.errors import ModelError

MOST_BYTES = 2_000_000_000
"""Of weights, in a graph of one file: Protocol Buffers end at 2 GiB."""

_KNOWN: WeakKeyDictionary[nn.Module, bytes] = WeakKeyDictionary()


class Probabilities(nn.Module):
    """A model of logits with the softmax behind it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(dim=-1)


def why_not_exported(model: nn.Module) -> str | None:
    """The reason why no graph can be made of `model`, as far as that is known without trying, or None."""
    tensors = list(chain(model.parameters(), model.buffers()))
    devices = {tensor.device.type for tensor in tensors}
    if "meta" in devices:
        return "it has no weights (they are on the meta device)"
    if devices - {"cpu"}:
        return f"its weights are on {', '.join(sorted(devices))}, and graphs are made on the processor: use model.cpu()"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes - {torch.float32}:
        words = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"its weights are {words}, and graphs are made from float32: use model.float()"
    size = sum(tensor.nbytes for tensor in tensors)
    return f"its weights are {size / 1e9:.1f} GB, and a graph holds at most 2" if size > MOST_BYTES else None


def onnx_program(model: nn.Module, example: Tensor) -> torch.onnx.ONNXProgram:
    """`model` as an ONNX program from `images` (B, C, H, W) to `probabilities` (B, K), for any B.

    Args:
        model: From images to probabilities, in evaluation mode.
        example: Two images or more: of a batch of one, torch.export would make a constant.

    Raises:
        ModelError: The code of `model` makes a constant of the batch size.
    """
    with quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    if shape is None or isinstance(shape[0], int):  # the exporter tries again without the dynamic batch, and is silent
        raise ModelError(f"it could be exported for batches of {len(example)} alone: its code fixes the batch size")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source code each came from, with the paths of this machine
    return program


def onnx_graph(model: nn.Module, example: Tensor) -> bytes:
    """The ONNX file of a model of logits, with the softmax behind it: made once for a module, as exporting is dear.

    The module must not change afterwards.

    Raises:
        ModelError: The code of `model` makes a constant of the batch size.
    """
    if model not in _KNOWN:
        batch = example[:1].float().cpu().expand(2, -1, -1, -1).contiguous()
        kept = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        same = copy.deepcopy(model, kept)  # over the same weights, to be set to evaluation mode
        _KNOWN[model] = onnx_program(Probabilities(same).eval(), batch).model_proto.SerializeToString()
    return _KNOWN[model]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries that convert models say nothing: no warnings, no log, no progress bars on standard output."""
    root = logging.getLogger()
    nobody, disabled = logging.NullHandler(), root.manager.disable
    root.addHandler(nobody)  # without a handler there, the first message would install one that prints ever after
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(nobody)
