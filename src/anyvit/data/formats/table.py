"""A CSV file of path and label, with an optional column that names the split."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from anyvit.data.formats.format import SPLIT_OF_WORD, Found, Labelled
from anyvit.data.images import FileImages
from anyvit.errors import DataError


class Table:
    """`path,label` or `path,label,split`; paths are relative to the file. The header may be missing."""

    name = "csv"
    summary = "a .csv file with the columns path, label and optionally split"

    def opens(self, source: str) -> bool:
        return source.lower().endswith(".csv") and Path(source).is_file()

    def read(self, source: str) -> Found:
        file = Path(source)
        paths, labels = defaultdict(list), defaultdict(list)
        for line, row in _rows(file):
            path = file.parent / row["path"]
            if not row["label"]:
                raise DataError(f"{file} line {line}: no label for {row['path']!r}. Add one or remove the line.")
            if not path.is_file():
                raise DataError(
                    f"{file} line {line}: no file {path}. Paths are relative to the folder of the CSV file."
                )
            word = row.get("split", "train")
            split = SPLIT_OF_WORD.get(word.lower())
            if split is None:
                raise DataError(f"{file} line {line}: unknown split {word!r}. Known: train, val, test.")
            paths[split].append(path)
            labels[split].append(row["label"])
        return Found({split: Labelled(FileImages(paths[split], file.parent), labels[split]) for split in paths})


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and cells by column name."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    lines = text.splitlines()
    if not lines:
        raise DataError(f"{file} is empty. It needs the columns path and label.")
    reader = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count))
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    header = [cell.lower() for cell in rows[0][1]]
    if {"path", "label"} <= set(header):
        rows = rows[1:]
    elif len(header) in (2, 3) and (file.parent / rows[0][1][0]).is_file():
        header = ["path", "label", "split"][: len(header)]
    else:
        raise DataError(f"{file} has the columns {', '.join(rows[0][1])}. It needs path and label, and may have split.")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{file} line {line}: {len(row)} cells where the header has {len(header)}.")
    return [(line, dict(zip(header, row, strict=True))) for line, row in rows]
