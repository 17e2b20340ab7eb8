"""Parquet as the Hugging Face `datasets` library writes it: a file, or a folder of one file or more a split.

The image column is a struct of bytes and path; the names of the classes lie in the schema's metadata.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvit.data.formats.format import SPLIT_OF_WORD, Found, Labelled
from anyvit.data.images import EncodedImages, read_file
from anyvit.errors import DataError

MEMORY_LIMIT = 2 << 30  # bytes of parquet that are read into memory; more is laid out in a temporary file


class Parquet:
    """`data.parquet`, or a folder of `train-00000-of-00002.parquet`, `test.parquet`, `train/0000.parquet` and such."""

    name = "parquet"
    summary = "parquet as Hugging Face datasets writes it: a file, or a folder of train*, validation*, test* files"

    def opens(self, source: str) -> bool:
        return bool(_files(Path(source)))

    def read(self, source: str) -> Found:
        root = Path(source)
        files = _files(root)
        by_split: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            by_split[_split_of(file, root)].append(file)
        unnamed = by_split.pop("", [])
        if not by_split:
            by_split, unnamed = {"train": unnamed}, []
        notes = [f"Left out, for its name tells no split: {file.name}." for file in unnamed]
        in_memory = sum(file.stat().st_size for file in files) < MEMORY_LIMIT
        tables = {split: [_read(file, in_memory) for file in files] for split, files in by_split.items()}
        every = [table for parts in tables.values() for table in parts]
        notes += dict.fromkeys(note for table in every for note in table.notes)
        if unused := {name for table in every for name in table.names} - {label for t in every for label in t.labels}:
            notes.append(f"Classes without any image are left out: {', '.join(sorted(unused))}.")
        labels = {split: [label for table in parts for label in table.labels] for split, parts in tables.items()}
        return Found({s: Labelled(ParquetImages(tables[s]), labels[s]) for s in tables if labels[s]}, tuple(notes))


@dataclass(frozen=True, eq=False, slots=True)
class _Table:
    """One file: the numbers and labels of the rows that have a label, all images, the class names of the metadata."""

    file: Path
    rows: np.ndarray
    images: pa.ChunkedArray
    labels: list[str]
    names: Sequence[str]
    notes: list[str]


class ParquetImages(EncodedImages):
    """The images of several tables, one after the other."""

    def __init__(self, tables: Sequence[_Table]) -> None:
        self.tables = tables
        self.starts = np.cumsum([0, *(len(table.rows) for table in tables)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        table, row = self._place(index)
        path = _cell(table, row)["path"]
        return f"{table.file.name} row {table.rows[row]}" + (f" {path}" if path else "")

    def encoded(self, index: int) -> bytes:
        table, row = self._place(index)
        image = _cell(table, row)
        if image["bytes"] is None and image["path"]:
            return read_file(table.file.parent / image["path"])
        return image["bytes"] or b""

    def _place(self, index: int) -> tuple[_Table, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.tables[number], index - int(self.starts[number])


def _cell(table: _Table, row: int) -> dict[str, Any]:
    value = table.images[int(table.rows[row])].as_py()
    return value if isinstance(value, dict) else {"bytes": value, "path": None}


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".parquet" else []
    if not root.is_dir():
        return []
    folders = [root, *(inner for inner in root.iterdir() if inner.name == "data" or inner.name in SPLIT_OF_WORD)]
    return sorted(file for folder in folders for file in folder.glob("*.parquet"))


def _split_of(file: Path, root: Path) -> str:
    """The split that the name of the file, or else of its folder, begins with; "" where neither does."""
    if file == root:
        return ""
    for part in reversed(file.relative_to(root).parts):
        word = re.match("[a-z]*", part.lower())
        if word and word.group() in SPLIT_OF_WORD:
            return SPLIT_OF_WORD[word.group()]
    return ""


def _read(file: Path, in_memory: bool) -> _Table:
    try:
        schema = pq.read_schema(file)
        features = _features(schema)
        image_column = _image_column(file, schema, features)
        label_column, notes = _label_column(file, schema, features)
        cells = pq.read_table(file, columns=[label_column]).column(0).to_pylist()
        images = (_in_memory if in_memory else _on_disk)(file, image_column)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not a readable parquet file ({error}). Download or write it again.") from error
    names = features.get(label_column, {}).get("names") or []
    rows = np.array([row for row, cell in enumerate(cells) if cell is not None and cell != -1], dtype=np.int64)
    if len(rows) < len(cells):
        notes.append(f"{len(cells) - len(rows)} rows of {file.name} have no label and are left out.")
    labels = [_class_name(file, cells[row], names) for row in rows]
    return _Table(file, rows, images, labels, names, notes)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the `datasets` library notes about each column; nothing where another program wrote the file."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError):
        return {}


def _image_column(file: Path, schema: pa.Schema, features: dict[str, Any]) -> str:
    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    likely = [field.name for field in schema if _holds_bytes(field.type)]
    if not marked and not likely:
        raise DataError(f"{file} has no column of images: its columns are {', '.join(schema.names)}.")
    return (marked or likely)[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(file: Path, schema: pa.Schema, features: dict[str, Any]) -> tuple[str, list[str]]:
    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    columns = marked or [name for name in schema.names if name in ("label", "labels")]
    if not columns:
        raise DataError(f"{file} has no column of labels: its columns are {', '.join(schema.names)}. Call it 'label'.")
    others = ", ".join(columns[1:])
    return columns[0], [f"Labels are read from column {columns[0]}, not from {others}."] if others else []


def _class_name(file: Path, cell: object, names: Sequence[str]) -> str:
    if not isinstance(cell, int | str):
        raise DataError(f"{file} holds the label {cell!r}. A label is an integer or a text, one for each image.")
    if isinstance(cell, str) or not names:
        return str(cell)
    if not 0 <= cell < len(names):
        raise DataError(f"{file} holds the label {cell}, but names only {len(names)} classes.")
    return names[cell]


def _in_memory(file: Path, column: str) -> pa.ChunkedArray:
    return pq.read_table(file, columns=[column]).column(0)


def _on_disk(file: Path, column: str) -> pa.ChunkedArray:
    """The column, mapped from an uncompressed copy that has no name any more and goes with the process."""
    parquet = pq.ParquetFile(file)
    with tempfile.NamedTemporaryFile(suffix=".arrow") as copy:
        with pa.ipc.new_file(copy, pa.schema([parquet.schema_arrow.field(column)])) as writer:
            for batch in parquet.iter_batches(batch_size=256, columns=[column]):
                writer.write_batch(batch)
        copy.flush()
        return pa.ipc.open_file(pa.memory_map(copy.name)).read_all().column(0)
