"""`evaluate`: an honest score on any data, never on what the model was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from anyvit.data import open_test
from anyvit.errors import BudgetError, DataError
from anyvit.jobs.evaluate import evaluate
from anyvit.scaling.scoring import scores_of
from tests.deploy.tiny import PREPROCESSING, RESULTS, digits, write_tiny

TEST = digits().splits["test"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def folder(tmp_path):
    """Test images in a folder per class: 0 to 4, ten each."""
    root = tmp_path / "photos"
    for label in range(5):
        (root / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(TEST.labels == label)[:10]:
            TEST.images.load(int(index)).save(root / str(label) / f"{index}.png")
    return root


def test_without_data_the_test_split_of_the_run_is_scored(bundle):
    evaluation = evaluate(str(bundle.folder))
    expected = scores_of(bundle.runner(), TEST, PREPROCESSING, bundle.classes)
    assert evaluation.scores.count == len(TEST)
    assert evaluation.scores.confusion == expected.confusion
    assert evaluation.scores.interval[0] < evaluation.scores.accuracy < evaluation.scores.interval[1]
    assert evaluation.candidate == RESULTS[0].id
    assert any("1438 of 1797 images are left out" in note for note in evaluation.notes)
    assert not any("changed since the run" in note for note in evaluation.notes)
    assert evaluation.to_json()["scores"]["classes"]["3"]["count"] == np.sum(TEST.labels == 3)


def test_budget_scores_another_candidate(bundle):
    evaluation = evaluate(str(bundle.folder), budget="latency<=3.5ms", batch_size=100)
    expected = scores_of(bundle.runner(RESULTS[2]), TEST, PREPROCESSING, bundle.classes)
    assert evaluation.candidate == "heads3-torch"
    assert evaluation.scores.accuracy == pytest.approx(expected.accuracy, abs=1 / len(TEST))
    with pytest.raises(BudgetError):
        evaluate(str(bundle.folder), budget="latency<=1us")


def test_classes_are_joined_by_name(bundle, folder):
    """The folder has half of the classes, so its own positions differ from the model's when one is left out."""
    for path in (folder / "0").iterdir():
        path.unlink()
    (folder / "0").rmdir()
    evaluation = evaluate(str(bundle.folder), str(folder))
    assert evaluation.scores.count == 40
    assert evaluation.scores.accuracy > 0.5
    assert evaluation.scores.classes["0"].count == 0
    assert evaluation.scores.classes["4"].count == 10
    assert "Without images here: class 0, 5, 6, 7, 8 and 1 more." in evaluation.notes


def test_unknown_class_is_refused_by_name(bundle, folder):
    (folder / "eleven").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "eleven" / "x.png")
    with pytest.raises(DataError, match="the model does not know class eleven"):
        evaluate(str(bundle.folder), str(folder))


def test_images_of_the_training_are_left_out(bundle, folder):
    images = open_test(folder, bundle.classes).splits["test"].images
    seen = [images.content_hash(index) for index in range(20)]
    own = write_tiny(folder.parent / "own", seen=seen)
    evaluation = evaluate(str(own.folder), str(folder))
    assert evaluation.scores.count == 30
    assert "20 of 50 images are left out: the model was trained or chosen on them." in evaluation.notes


def test_only_images_of_the_training(bundle, folder):
    images = open_test(folder, bundle.classes).splits["test"].images
    own = write_tiny(folder.parent / "own", seen=[images.content_hash(index) for index in range(50)])
    with pytest.raises(DataError, match=r"trained or chosen on every one of the 50 images of .*cannot judge it"):
        evaluate(str(own.folder), str(folder))


def test_source_that_has_changed_is_said(tmp_path):
    own = write_tiny(tmp_path / "own", seen=[1, 2, 3])
    assert any("digits has changed since the run" in note for note in evaluate(str(own.folder)).notes)
