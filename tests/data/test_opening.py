"""What `open_data` promises for every format: names, splits, notes, and an answer to every bad input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyvit.data import checking, open_data, open_test
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError
from tests.data.conftest import encoded, picture


def names(data, split):
    images = data.splits[split].images
    return {images.name(i) for i in range(len(images))}


def test_splits_are_stratified_and_complete(image_folder):
    data = open_data(image_folder({"cat": 20, "dog": 10}))
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [14, 7], "val": [2, 1], "test": [4, 2]}
    assert len(names(data, "train") | names(data, "val") | names(data, "test")) == 30
    assert "test is 6 of 30 images, 20% of each class (seed 0)." in data.notes


def test_two_images_of_a_class_are_enough(image_folder):
    data = open_data(image_folder({"cat": 20, "dog": 2}))
    assert [np.bincount(data.splits[name].labels, minlength=2)[1] for name in ("train", "val", "test")] == [1, 0, 1]
    assert "Without images in val: class dog." in data.notes


def test_a_given_val_becomes_the_test(image_folder):
    image_folder({"train/cat": 10, "train/dog": 10})
    data = open_data(image_folder({"val/cat": 3, "val/dog": 3}, first=50))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 4, "test": 6}
    assert "There is no test split: the given val is the test, and another val is drawn from train." in data.notes


def test_a_class_missing_from_train_is_said(image_folder):
    image_folder({"train/cat": 10, "train/dog": 10})
    data = open_data(image_folder({"test/cat": 3, "test/ant": 3}, first=50))
    assert data.classes == ("ant", "cat", "dog")
    assert "Without images in train and cannot be learned: class ant." in data.notes
    assert "Without images in test: class dog." in data.notes
    assert data.splits["test"].labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_same_file_in_two_splits_stays_nearest_to_the_test(image_folder):
    image_folder({"train/cat": 10, "train/dog": 10, "val/cat": 2, "val/dog": 2})
    data = open_data(image_folder({"test/cat": 1, "test/dog": 3}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 15, "val": 1, "test": 4}
    assert any(
        note.startswith("3 images of val are in another split too and left out of val: val/cat/0.png")
        for note in data.notes
    )
    assert any(note.startswith("5 images of train are in another split too") for note in data.notes)


def test_equal_files_of_an_unsplit_folder_stay_together(image_folder):
    root = image_folder({"cat": 10, "dog": 10})
    for file in list(root.rglob("*.png")):
        (file.parent / f"copy of {file.name}").write_bytes(file.read_bytes())
    data = open_data(root)
    hashes = [{data.splits[s].images.content_hash(i) for i in range(len(data.splits[s]))} for s in data.splits]
    assert sum(map(len, hashes)) == len(set().union(*hashes)) == 20
    assert sum(len(split) for split in data.splits.values()) == 40


def test_far_out_of_balance_turns_class_weights_on(image_folder):
    assert open_data(image_folder({"cat": 20, "dog": 10})).class_weights is None
    data = open_data(image_folder({"cat": 60, "dog": 10}))
    cat, dog = data.class_weights
    assert dog / cat == pytest.approx(41 / 7)
    assert "Classes are far out of balance (cat 41 images, dog 7): rare ones weigh more in training." in data.notes


@pytest.mark.parametrize(
    ("classes", "mirrored"),
    [(("cat", "dog"), True), (("a", "b"), False), (("turn left", "turn right"), False), (("left", "stop"), True)],
)
def test_mirroring_where_it_keeps_the_label(image_folder, classes, mirrored):
    assert open_data(image_folder(dict.fromkeys(classes, 4))).mirrored is mirrored


def test_a_few_damaged_files_are_skipped_and_named(image_folder):
    root = image_folder({"cat": 30, "dog": 30})
    (root / "cat" / "3.png").write_bytes(b"")
    (root / "dog" / "4.png").write_bytes((root / "dog" / "4.png").read_bytes()[:100])
    data = open_data(root)
    assert sum(len(split) for split in data.splits.values()) == 58
    assert data.notes[0].startswith(
        "2 of 60 images are damaged and left out: cat/3.png (the file is empty), dog/4.png ("
    )


def test_large_sets_stream_and_equal_cached_ones(image_folder, monkeypatch):
    root = image_folder({"cat": 30, "dog": 30})
    (root / "cat" / "3.png").write_bytes(b"")
    cached = open_data(root)
    monkeypatch.setattr(checking, "MEMORY_LIMIT", 0)
    streamed = open_data(root)
    assert cached.splits["val"].images.in_memory
    assert not streamed.splits["val"].images.in_memory
    assert streamed.notes == cached.notes
    assert streamed.image_size == cached.image_size == 10
    for data in (cached, streamed):
        assert names(data, "test") == names(cached, "test")
    pairs = zip(*(evaluation_batches(d.splits["test"], Preprocessing(8)) for d in (cached, streamed)), strict=True)
    assert all((images == others).all() for (images, _), (others, _) in pairs)


def test_progress_reaches_the_end(image_folder):
    events = []
    open_data(image_folder({"cat": 50, "dog": 50}), progress=events.append)
    assert events[-1].done == 1.0
    assert events[-1].message == "100 of 100 images"


def test_a_path_is_never_a_name(image_folder, monkeypatch):
    image_folder({"digits/cat": 4, "digits/dog": 4})
    monkeypatch.chdir(image_folder({}))
    assert open_data(Path("digits")).classes == open_data("./digits").classes == ("cat", "dog")
    assert len(open_data("digits").classes) == 10


def test_open_test_takes_the_classes_of_the_model(image_folder):
    root = image_folder({"dog": 3})
    data = open_test(root, ["emu", "dog", "cat"])
    assert data.classes == ("emu", "dog", "cat")
    assert data.splits["test"].labels.tolist() == [1, 1, 1]
    with pytest.raises(DataError, match=r"the model does not know class dog of .* Its classes are ant, bee"):
        open_test(root, ["ant", "bee"])


def test_open_test_scores_the_test_where_one_is_given(image_folder):
    data = open_test(image_folder({"train/cat": 4, "train/dog": 4, "test/dog": 2}), ["cat", "dog"])
    assert list(data.splits) == ["test"]
    assert len(data.splits["test"]) == 2
    assert "Only the split test is scored." in data.notes


class TestBadInput:
    def refused(self, source, words):
        with pytest.raises(DataError, match=words) as caught:
            open_data(source)
        assert "\n" not in str(caught.value)

    def test_nothing_there(self, tmp_path):
        self.refused(tmp_path / "nowhere", "nowhere does not exist. What opens: .*a folder per class")

    def test_unknown_kind_of_file(self, tmp_path):
        (tmp_path / "photos.zip").write_bytes(b"PK")
        self.refused(tmp_path / "photos.zip", "photos.zip is of no known format. What opens: ")

    def test_no_folders(self, tmp_path):
        self.refused(tmp_path, "has no folder per class. It holds no images: put them as .*CLASS/IMAGE.jpg")

    def test_images_without_folders(self, image_folder):
        self.refused(image_folder({".": 3}), "There are images, but not in a folder of their class")

    def test_no_images(self, image_folder):
        self.refused(
            image_folder({"cat": 0, "dog": 0}), "no images in .*: none of its 2 folders holds a file of a known kind"
        )

    def test_empty_class(self, image_folder):
        self.refused(
            image_folder({"cat": 9, "dog": 0}), "no images of class 'dog' in .* Add at least two images or remove"
        )

    def test_one_class(self, image_folder):
        self.refused(image_folder({"cat": 9}), "has only one class, 'cat'. Telling classes apart takes at least two")

    def test_class_of_one_image(self, image_folder):
        root = image_folder({"cat": 9, "dog": 1})
        self.refused(root, r"too few different images of dog \(1\) in .* Each class needs at least two")
        (root / "dog" / "copy.png").write_bytes((root / "dog" / "0.png").read_bytes())
        self.refused(root, r"too few different images of dog \(1\)")

    def test_class_of_damaged_images(self, image_folder):
        root = image_folder({"cat": 99, "dog": 2})
        for file in (root / "dog").iterdir():
            file.write_bytes(b"")
        self.refused(root, r"too few different images of dog \(0\)")

    def test_too_many_damaged(self, image_folder):
        root = image_folder({"cat": 10, "dog": 9})
        (root / "cat" / "3.png").write_bytes(b"no image")
        self.refused(
            root, r"1 of 19 images in .* are damaged, more than 5%: cat/3.png \(not a JPEG.* Replace or remove"
        )

    def test_nothing_left_to_validate(self, image_folder):
        self.refused(image_folder({"cat": 2, "dog": 2}), "too few images in .* to hold some out as val: 2 are left")

    def test_no_train(self, image_folder):
        self.refused(image_folder({"test/cat": 3, "test/dog": 3}), "has no images to train on, only test")

    def test_train_equals_test(self, image_folder):
        root = image_folder({"train/cat": 3, "train/dog": 3, "test/cat": 3, "test/dog": 3})
        self.refused(root, "every image of train in .* is in another split too. Nothing is left of train")

    def test_unreadable_file(self, image_folder):
        root = image_folder({"cat": 3, "dog": 3})
        (root / "cat" / "gone.jpg").symlink_to("nowhere")
        self.refused(root, "gone.jpg cannot be read .No such file or directory.. Check that it exists")

    def test_unreadable_folder(self, image_folder, monkeypatch):
        def refuse(self):
            raise PermissionError(13, "Permission denied", str(self))

        root = image_folder({"cat": 3, "dog": 3})
        monkeypatch.setattr(Path, "iterdir", refuse)
        self.refused(root, "cannot be read .*Permission denied.* Check that all of it is yours to read")


def test_every_kind_of_image_in_one_folder(tmp_path):
    grey16 = Image.fromarray(np.asarray(picture(9).convert("L")).astype(np.uint16) * 257)
    images = {
        "a.jpg": encoded(picture(0), "JPEG"),
        "b.PNG": encoded(picture(1).convert("RGBA")),
        "c.webp": encoded(picture(2), "WEBP"),
        "d.bmp": encoded(picture(3).convert("P"), "BMP"),
        "e.tiff": encoded(picture(4).convert("CMYK"), "TIFF"),
        "f.png": encoded(grey16),
    }
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for seed, (file, content) in enumerate(images.items(), start=10):
            (tmp_path / name / file).write_bytes(content if name == "cat" else encoded(picture(seed)))
    data = open_data(tmp_path)
    assert sum(len(split) for split in data.splits.values()) == 12
    assert not any("damaged" in note for note in data.notes)
