"""ONNX: one file, for ONNX Runtime and whatever else reads it. Labels and the rest lie in its metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from anyvit.deploy.formats.format import Texts


def onnx_program(model: nn.Module, example: Tensor) -> torch.onnx.ONNXProgram:
    """`model` as an ONNX program from `images` (B, C, H, W) to `probabilities` (B, K), for any B."""
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


class Onnx:
    """Writes a .onnx file."""

    name, target, model = "onnx", "model.onnx", ""
    how_to_read = (
        'python -c "import onnxruntime as o; '
        "print(o.InferenceSession('{target}').get_modelmeta().custom_metadata_map['script'])\""
    )

    def write(self, model: nn.Module, example: Tensor, texts: Texts, target: Path) -> None:
        program = onnx_program(model, example)
        program.model.metadata_props.update(texts.by_name())
        program.save(target, external_data=False)
