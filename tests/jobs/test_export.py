"""`export`: a file for other machines, from a bundle and a word."""

from __future__ import annotations

import pytest

from anyvit.deploy import standalone
from anyvit.errors import BudgetError, DataError, SettingError
from anyvit.jobs.export import export
from tests.deploy.tiny import digits, document, write_tiny

TEST = digits().splits["test"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle"))


def test_onnx_in_the_bundle_by_default(bundle):
    news = []
    exported = export(str(bundle.folder), progress=news.append)
    assert exported.path == bundle.folder / "model.onnx"
    assert exported.candidate == "full-torch"
    assert exported.verification.images == 200
    assert exported.verification.accuracy == pytest.approx(document()["test"]["accuracy"], abs=0.1)  # unseen images
    assert "full-torch as onnx, verified on images of digits" in [event.message for event in news]


def test_budget_place_and_images_of_choice(bundle, tmp_path):
    for label in range(10):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
    for index in range(30):
        TEST.images.load(index).save(tmp_path / "photos" / str(TEST.labels[index]) / f"{index}.png")
    out = tmp_path / "new" / "small.pt2"
    photos = str(tmp_path / "photos")
    exported = export(str(bundle.folder), format="torch", out=str(out), budget="params<=9k", data=photos)
    assert exported.candidate == "heads2-torch"
    assert exported.notes == ("Verified on all 30 images there are, fewer than 200: name more with --data.",)
    assert standalone.open_model(str(out))[1] == list(bundle.classes)
    assert list(out.parent.iterdir()) == [out]


def test_images_that_are_gone_are_said_with_the_remedy(tmp_path):
    data = {**document()["data"], "source": str(tmp_path / "gone")}
    own = write_tiny(tmp_path / "own", data=data)
    with pytest.raises(DataError, match=r"gone does not exist.*verified on real images: name some with --data\.$"):
        export(str(own.folder))


def test_what_cannot_be_is_refused_before_work(bundle):
    with pytest.raises(SettingError, match="unknown format 'tflite'"):
        export(str(bundle.folder), format="tflite")
    with pytest.raises(BudgetError, match="the closest"):
        export(str(bundle.folder), budget="params<=1")
