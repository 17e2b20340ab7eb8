"""PyTorch: one .pt2 file by torch.export, which runs where timm is not installed. Labels and the rest lie in it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from anyvit.deploy.formats.format import Texts


class TorchExport:
    """Writes a .pt2 file."""

    name, target, model = "torch", "model.pt2", ""
    how_to_read = (
        "python -c \"import torch; texts = dict(script=''); "
        "torch.export.load('{target}', extra_files=texts); print(texts['script'])\""
    )

    def write(self, model: nn.Module, example: Tensor, texts: Texts, target: Path) -> None:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
        torch.export.save(program, target, extra_files=texts.by_name())
