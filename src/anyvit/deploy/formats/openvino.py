"""OpenVINO: a folder with model.xml, model.bin, the script and a readme. Labels and the rest lie in the xml."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from anyvit.backends.graph import onnx_program
from anyvit.backends.openvino import core
from anyvit.deploy.formats.format import Texts


class OpenVino:
    """Writes a folder. The way leads over ONNX: openvino.convert_model would report its use over the network."""

    name, target, model = "openvino", "openvino", "model.xml"
    how_to_read = "cat {target}/predict.py"

    def write(self, model: nn.Module, example: Tensor, texts: Texts, target: Path) -> None:
        import openvino  # slow to load, and only needed here

        graph = core().read_model(onnx_program(model, example).model_proto.SerializeToString())
        for name, text in texts.by_name().items():
            graph.set_rt_info(text, ["anyvit", name])
        target.mkdir()
        openvino.save_model(graph, target / self.model, compress_to_fp16=False)
        (target / "predict.py").write_text(texts.script, encoding="utf-8")
        (target / "README.md").write_text(texts.readme, encoding="utf-8")
