"""ONNX: one file, for ONNX Runtime and whatever else reads it. Labels and the rest lie in its metadata."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from anyvit.backends.graph import onnx_program
from anyvit.deploy.formats.format import Texts


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
