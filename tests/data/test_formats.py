"""Every registered format keeps one contract; then what is particular to each."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anyvit.data import FORMATS, open_data
from anyvit.data.formats import parquet
from anyvit.errors import DataError
from tests.data.conftest import encoded, picture, write_parquet, write_pictures


def folder_example(root):
    for name in ("cat", "dog"):
        write_pictures(root / "photos" / name, 10)
    return root / "photos"


def csv_example(root):
    folder_example(root)
    lines = [f"photos/{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(10)]
    (root / "photos.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    return root / "photos.csv"


def parquet_example(root):
    write_parquet(root / "data.parquet", [0, 1] * 10, ["cat", "dog"])
    return root / "data.parquet"


def torchvision_example(root):
    return "torchvision:FakeData?size=30&image_size=(3,12,10)&num_classes=2"


EXAMPLES = {
    "digits": lambda root: "digits",
    "folder": folder_example,
    "csv": csv_example,
    "parquet": parquet_example,
    "torchvision": torchvision_example,
}


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_format_contract(format, tmp_path):
    source = str(EXAMPLES[format.name](tmp_path))
    assert [other.name for other in FORMATS if other.opens(source)] == [format.name]
    assert format.summary
    found = format.read(source)
    assert "train" in found.splits
    for part in found.splits.values():
        assert len(part.images) == len(part.labels) > 0
        assert all(isinstance(label, str) for label in part.labels)
        image = part.images.load(0)
        assert image.mode == "RGB"
        assert image.size == part.images.size(0)
        assert part.images.content_hash(0) == part.images.content_hash(0) != part.images.content_hash(1)
        assert len({part.images.name(i) for i in range(len(part.images))}) == len(part.images)
    data, again = open_data(source, seed=1), open_data(source, seed=1)
    assert set(data.splits) == {"train", "val", "test"}
    assert all(data.digest(split) == again.digest(split) for split in data.splits)
    assert data.digest("train") != open_data(source, seed=2).digest("train")


def test_every_format_has_a_name_of_its_own():
    assert len({format.name for format in FORMATS}) == len(FORMATS) == len(EXAMPLES)


def test_digits():
    data = open_data("digits")
    assert data.classes == tuple("0123456789")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1222, "val": 216, "test": 359}
    assert data.image_size == 8
    assert not data.mirrored
    pixels = [np.asarray(data.splits["test"].images.load(i)) for i in range(20)]
    assert (np.min(pixels), np.max(pixels)) == (0, 255)


def labels_of(data, split):
    """Class names by the name of the image."""
    part = data.splits[split]
    return {part.images.name(i): data.classes[part.labels[i]] for i in range(len(part))}


def test_folder_with_splits(image_folder):
    data = open_data(image_folder({"train/cat": 8, "train/dog": 8}, first=0))
    assert sum(len(split) for split in data.splits.values()) == 16
    image_folder({"testing/cat": 3, "testing/dog": 2}, first=20)
    root = image_folder({"valid/cat": 4, "valid/dog": 4}, first=30)
    data = open_data(root)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 8, "test": 5}
    assert labels_of(data, "test")["testing/dog/21.png"] == "dog"


def test_images_lie_at_any_depth_below_their_class(image_folder):
    data = open_data(image_folder({"cat/2024/may": 5, "cat": 5, "dog": 10}))
    assert data.classes == ("cat", "dog")
    assert sum(len(split) for split in data.splits.values()) == 20


def test_train_may_be_the_name_of_a_class(image_folder):
    assert open_data(image_folder({"train": 5, "bus": 5})).classes == ("bus", "train")
    assert open_data(image_folder({"train/steam": 5, "bus": 5})).classes == ("bus", "train")


def test_a_test_folder_without_classes_is_left_out(image_folder):
    data = open_data(image_folder({"train/cat": 8, "train/dog": 8, "test": 4}))
    assert data.classes == ("cat", "dog")
    assert "Left out, for there are no classes in it or it is no split: test." in data.notes


def test_other_files_are_counted_by_kind(image_folder):
    root = image_folder({"cat": 5, "dog": 5})
    for name in ("a.heic", "b.heic", "c.txt", ".hidden", "Thumbs.db"):
        (root / "cat" / name).write_bytes(b"x")
    assert (
        open_data(root).notes[0] == "3 files are left out, for they are not images of a known kind (2 .heic, 1 .txt)."
    )


def test_csv_with_splits_semicolons_and_absolute_paths(tmp_path):
    photos = folder_example(tmp_path)
    rows = [f"{photos}/{c}/{i}.png;{c};{'train' if i < 7 else 'test'}" for c in ("cat", "dog") for i in range(10)]
    (tmp_path / "t.csv").write_text("﻿Path;Label;Split\n" + "\n\n".join(rows), encoding="utf-8")
    data = open_data(tmp_path / "t.csv")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "val": 2, "test": 6}


def test_csv_without_header(tmp_path):
    file = csv_example(tmp_path)
    file.write_text("\n".join(file.read_text().splitlines()[1:]))
    assert open_data(file).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty. It needs the columns path and label"),
        ("file,class\na.png,cat\n", "has the columns file, class. It needs path and label"),
        ("path,label\nphotos/cat/0.png,\n", "line 2: no label for 'photos/cat/0.png'"),
        ("path,label\nphotos/cat/99.png,cat\n", "line 2: no file .*99.png. Paths are relative"),
        (
            "path,label,split\nphotos/cat/0.png,cat,holdout\n",
            "line 2: unknown split 'holdout'. Known: train, val, test",
        ),
        ("path,label\nphotos/cat/0.png,cat,x\n", "line 2: 3 cells where the header has 2"),
        ("path,label\n", "no images in"),
    ],
)
def test_csv_faults(tmp_path, text, words):
    file = csv_example(tmp_path)
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        open_data(file)


def test_csv_that_is_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe,cat")
    with pytest.raises(DataError, match=r"is not UTF-8 text .* Save it as UTF-8"):
        open_data(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "files",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
    ],
)
def test_parquet_folders_join_classes_by_name(tmp_path, files):
    write_parquet(tmp_path / files[0], [0, 1, 2] * 8, ["cat", "dog", "emu"])
    write_parquet(tmp_path / files[1], [0, 1] * 3, ["dog", "cat"], first=100)
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog", "emu")
    assert data.splits["test"].labels.tolist() == [1, 0] * 3
    assert "Without images in test: class emu." in data.notes


def test_parquet_shards_may_order_their_classes_differently(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0] * 5 + [1] * 5, ["cat", "dog"])
    write_parquet(tmp_path / "train-1.parquet", [0] * 5, ["dog", "cat"], first=50)
    data = open_data(tmp_path)
    counts = sum(np.bincount(split.labels, minlength=2) for split in data.splits.values())
    assert counts.tolist() == [5, 10]


def test_parquet_without_metadata_names_classes_after_their_labels(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["cat", "dog"] * 5, None)
    assert open_data(tmp_path / "a.parquet").classes == ("cat", "dog")
    write_parquet(tmp_path / "b.parquet", [3, 7] * 5, None)
    assert open_data(tmp_path / "b.parquet").classes == ("3", "7")


def test_parquet_rows_without_label_and_classes_without_rows_are_said(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, None, -1, *[0, 1] * 5], ["cat", "dog", "emu"])
    data = open_data(tmp_path / "a.parquet")
    assert data.notes[:2] == (
        "2 rows of a.parquet have no label and are left out.",
        "Classes without any image are left out: emu.",
    )
    assert sum(len(split) for split in data.splits.values()) == 11
    assert "a.parquet row 1 1.png" not in {name for split in data.splits for name in labels_of(data, split)}


def test_large_parquet_is_mapped_from_disk(tmp_path, monkeypatch):
    file = parquet_example(tmp_path)
    in_memory = open_data(file)
    monkeypatch.setattr(parquet, "MEMORY_LIMIT", 0)
    assert open_data(file).digest("train") == in_memory.digest("train")


def test_parquet_of_paths_and_of_plain_bytes(tmp_path):
    names = [f"{i}.png" for i in range(10)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(picture(i)))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": None, "path": name} for name in names], kind)
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * 5}), tmp_path / "paths.parquet")
    contents = pa.array([encoded(picture(i)) for i in range(10)])
    pq.write_table(pa.table({"picture": contents, "label": ["a", "b"] * 5}), tmp_path / "bytes.parquet")
    assert open_data(tmp_path / "paths.parquet").digest("train") == open_data(tmp_path / "bytes.parquet").digest(
        "train"
    )


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [0]}, "has no column of images: its columns are label"),
        ({"image": [b"x"], "kind": [0]}, "has no column of labels: its columns are image, kind. Call it 'label'"),
        ({"image": [b"x"], "label": [[0, 1]]}, r"holds the label \[0, 1\]. A label is an integer or a text"),
    ],
)
def test_parquet_faults(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=words):
        open_data(tmp_path / "a.parquet")


def test_parquet_label_without_a_name(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 1, 2], ["cat", "dog"])
    with pytest.raises(DataError, match="holds the label 2, but names only 2 classes"):
        open_data(tmp_path / "a.parquet")


def test_damaged_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"is not a readable parquet file .* Download or write it again"):
        open_data(tmp_path / "a.parquet")


def write_mnist(root, count):
    """The files of torchvision's MNIST with noise in them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = np.array([0x801, count], dtype=">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))


@pytest.mark.parametrize("name", ["torchvision:MNIST", "torchvision:mnist", "MNIST"])
def test_torchvision_set_with_its_own_splits(tmp_path, name):
    write_mnist(tmp_path, 60)
    data = open_data(f"{name}?root={tmp_path}")
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 50, "val": 10, "test": 60}
    assert data.classes[3] == "3 - three"
    assert data.image_size == 28
    assert not data.mirrored


def test_torchvision_set_of_files_keeps_them_encoded(tmp_path):
    for name in ("AnnualCrop", "Forest"):
        write_pictures(tmp_path / "eurosat" / "2750" / name, 10)
    data = open_data(f"torchvision:EuroSAT?root={tmp_path}")
    assert data.classes == ("AnnualCrop", "Forest")
    assert data.digest("test") == open_data(tmp_path / "eurosat" / "2750").digest("test")


def test_torchvision_set_that_cannot_be_had(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(
        DataError, match=rf"torchvision CIFAR10 is not in {tmp_path} and cannot be downloaded \(no network\)"
    ):
        open_data(f"torchvision:CIFAR10?root={tmp_path}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision:CIFAR11", "unknown torchvision data set 'CIFAR11'. Did you mean 'CIFAR10'"),
        ("torchvision:FakeData?size", "'size' is no argument. Write torchvision:NAME"),
        ("torchvision:FakeData?sise=3", "cannot be opened with {'sise': 3}"),
    ],
)
def test_torchvision_faults(source, words):
    with pytest.raises(DataError, match=words):
        open_data(source)
