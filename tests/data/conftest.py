"""Small image folders, parquet files and pictures, made on the spot."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Noise of its own for every seed, (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_pictures(folder: Path, count: int, *, first: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """`count` different PNG files; equal numbers (`first` and on) of the same folder name are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        seed = sum(folder.name.encode()) * 1000 + number
        (folder / f"{number}.png").write_bytes(encoded(picture(seed, size)))


def write_parquet(file: Path, labels: list, names: list[str] | None, *, first: int = 0) -> None:
    """Different pictures with the given labels, laid out as the `datasets` library does."""
    images = [{"bytes": encoded(picture(first + i)), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table(
        {"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": labels}
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


@pytest.fixture
def image_folder(tmp_path):
    """Make a folder of images from {"cat": 10, "train/dog": 5}."""

    def make(counts: Mapping[str, int], **options) -> Path:
        for name, count in counts.items():
            write_pictures(tmp_path / "photos" / name, count, **options)
        return tmp_path / "photos"

    return make
