"""The formats that labelled images come in, one file each. The first that recognizes a source reads it."""

from __future__ import annotations

from anyvit.data.formats.digits import Digits
from anyvit.data.formats.folder import ClassFolders
from anyvit.data.formats.format import Format
from anyvit.data.formats.parquet import Parquet
from anyvit.data.formats.table import Table
from anyvit.data.formats.torchvision_sets import TorchvisionSet

FORMATS: tuple[Format, ...] = (Digits(), Table(), Parquet(), ClassFolders(), TorchvisionSet())
