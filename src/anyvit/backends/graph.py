"""The graph of a model in ONNX: what runtimes other than PyTorch, and exports, are made of."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_KNOWN: WeakKeyDictionary[nn.Module, bytes] = WeakKeyDictionary()


class Probabilities(nn.Module):
    """A model of logits with the softmax behind it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(dim=-1)


def onnx_program(model: nn.Module, example: Tensor) -> torch.onnx.ONNXProgram:
    """`model` as an ONNX program from `images` (B, C, H, W) to `probabilities` (B, K), for any B.

    Args:
        model: From images to probabilities, in evaluation mode.
        example: Two images or more: of a batch of one, torch.export would make a constant.
    """
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
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source code each came from, with the paths of this machine
    return program


def onnx_graph(model: nn.Module, example: Tensor) -> bytes:
    """The ONNX file of a model of logits, with the softmax behind it: made once for a module, as exporting is dear.

    The module must not change afterwards.
    """
    if model not in _KNOWN:
        batch = example[:1].float().cpu().expand(2, -1, -1, -1).contiguous()
        _KNOWN[model] = onnx_program(Probabilities(model).eval(), batch).model_proto.SerializeToString()
    return _KNOWN[model]
