"""`predict`: files, folders and patterns in, answers out, whatever some of them are like."""

from __future__ import annotations

import inspect
import io
import sys

import pytest

from anyvit.deploy.runtime import Predictor, load
from anyvit.errors import BudgetError, BundleError, DataError
from anyvit.jobs.predict import predict
from tests.deploy.tiny import digits, write_tiny

TEST = digits().splits["test"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("bundle")).folder)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "deep").mkdir()
    for index, name in enumerate(("a.png", "b.png", "deep/c.png")):
        TEST.images.load(index).save(tmp_path / name)
    return tmp_path


def test_files_folders_and_patterns(bundle, photos):
    expected = load(bundle).predict([photos / "a.png", photos / "b.png", photos / "deep/c.png"])
    assert predict(bundle, [str(photos)]) == expected
    assert predict(bundle, [str(photos / "*.png"), str(photos / "deep/c.png")]) == expected
    assert predict(bundle, str(photos / "a.png")) == expected[:1]


def test_standard_input(bundle, photos, monkeypatch):
    content = io.BytesIO((photos / "a.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    (prediction,) = predict(bundle, ["-"], top_k=2)
    assert prediction.name == "-"
    assert prediction.top == load(bundle).predict(photos / "a.png", top_k=2)[0].top


def test_unreadable_images_are_named_and_the_others_answered(bundle, photos):
    (photos / "aa.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "ab.png").touch()
    predictions = predict(bundle, [str(photos)], batch_size=4)
    assert [prediction.error is None for prediction in predictions] == [True, False, False, True, True]
    assert str(photos / "aa.png") in predictions[1].error
    assert predictions[2].error == f"{photos / 'ab.png'} (the file is empty)"


def test_nothing_but_unreadable_images(bundle, tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.jpg").touch()
    with pytest.raises(DataError, match=r"none of 5 images can be read: .*0\.jpg \(the file is empty\).* …$"):
        predict(bundle, [str(tmp_path)])


def test_errors_come_before_work(bundle, photos, tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        predict(str(tmp_path / "none"), [str(photos)])
    with pytest.raises(BudgetError, match="the closest"):
        predict(bundle, [str(photos)], budget="latency<=1us")
    with pytest.raises(DataError, match="matches no image"):
        predict(bundle, [str(tmp_path / "nothing*.jpg")])


def test_predictor_and_job_share_their_defaults():
    ours, theirs = (inspect.signature(function).parameters for function in (predict, Predictor.predict))
    for name in ("budget", "top_k", "batch_size"):
        assert ours[name].default == theirs[name].default
