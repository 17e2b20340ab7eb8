"""The formats that models are exported to, one file each."""

from __future__ import annotations

from anyvit.deploy.formats.format import Format, Texts
from anyvit.deploy.formats.onnx import Onnx
from anyvit.deploy.formats.openvino import OpenVino
from anyvit.deploy.formats.torch import TorchExport
from anyvit.errors import SettingError, unknown

FORMATS: tuple[Format, ...] = (Onnx(), OpenVino(), TorchExport())

__all__ = ["FORMATS", "Format", "Texts", "format_named"]


def format_named(name: str) -> Format:
    """The format of that name. Raises SettingError."""
    by_name = {format.name: format for format in FORMATS}
    if name not in by_name:
        raise SettingError(unknown("format", name, by_name))
    return by_name[name]
