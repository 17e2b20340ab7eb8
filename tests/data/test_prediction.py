"""Images to predict come from files, folders, patterns and standard input."""

import io
from types import SimpleNamespace

import pytest

from anyvit.data import open_images
from anyvit.errors import DataError
from tests.data.conftest import encoded, picture


def test_files_folders_and_patterns_in_the_order_given(image_folder, monkeypatch):
    root = image_folder({"dog": 2, "cat/old": 1})
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "photo").write_bytes(encoded(picture(1)))
    monkeypatch.chdir(root)
    images = open_images(["photo", "dog/*", "cat", "**/0.png"])
    assert [images.name(i) for i in range(len(images))] == [
        "photo",
        "dog/0.png",
        "dog/1.png",
        "cat/old/0.png",
        "cat/old/0.png",
        "dog/0.png",
    ]
    assert images.load(0).size == (12, 10)


def test_standard_input(monkeypatch):
    content = encoded(picture(1))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    images = open_images(["-"])
    assert (len(images), images.name(0), images.load(0).size) == (1, "-", (12, 10))


def test_damaged_images_are_found_out_when_loaded(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    images = open_images([str(tmp_path / "a.jpg")])
    with pytest.raises(DataError, match=r"a.jpg \(the file is empty\)"):
        images.load(0)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "no images named"),
        (["nowhere.jpg"], "nowhere.jpg matches no image. It may be a file, a folder or a pattern"),
        (["."], ". holds no images"),
        (["-", "a.jpg"], "cannot be mixed with files"),
    ],
)
def test_nothing_to_predict(tmp_path, monkeypatch, inputs, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        open_images(inputs)
