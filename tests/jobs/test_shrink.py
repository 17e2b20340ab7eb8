"""`shrink`: from trained weights to the best cheaper form inside a budget, without training."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

import anyvit
from anyvit.errors import BudgetError, SettingError
from anyvit.models import create_model
from tests.conftest import TINY, hurried

NARROW = "params<=50k"


@pytest.fixture(scope="module")
def shrunk(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("shrunk") / "run"
    with hurried():
        return anyvit.shrink(
            str(finished.folder), data="digits", budget=NARROW, levers="heads", backends="torch", out=str(out)
        )


def test_a_bundle_shrinks_with_the_weights_it_has(shrunk, finished):
    assert shrunk.chosen.costs["params"] <= 50_000 < finished.chosen.costs["params"]
    assert shrunk.document["promise"]["status"] == "kept"
    assert shrunk.document["command"].startswith(f"anyvit shrink {finished.folder} --data digits --budget")
    before = {result.id: result.accuracy for result in finished.results}
    assert {result.id: result.accuracy for result in shrunk.results} == before


def test_a_finished_run_is_given_at_once(shrunk, finished):
    news = []
    arguments = {"data": "digits", "budget": NARROW, "levers": "heads", "backends": "torch", "out": str(shrunk.folder)}
    again = anyvit.shrink(str(finished.folder), **arguments, progress=news.append)
    assert again.chosen.id == shrunk.chosen.id
    assert "finished" in news[0].message


def test_the_bundle_of_a_shrunk_model_answers(shrunk, photos):
    assert anyvit.predict(str(shrunk.folder), [str(photos / "dark" / "0.png")])[0].label in shrunk.classes


def test_a_file_of_weights_needs_nothing_else(tmp_path, photos, hasty):
    save_file(create_model(TINY, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    arguments = {
        "data": str(photos),
        "levers": "heads",
        "backends": "torch",
        "weights": str(tmp_path / "w.safetensors"),
    }
    bundle = anyvit.shrink(TINY, **arguments, budget="params<=1M", out=str(tmp_path / "out"))
    assert bundle.document["model"]["levers"] == []
    assert not bundle.document["history"]


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        (TINY, {}, "needs trained weights: name a file with --weights, or `pretrained`, or a bundle"),
        (TINY, {"weights": "ten"}, "do not tell the 2 classes of the images: train it for them first, anyvit fit"),
        (None, {"weights": "ten"}, "is a bundle and has weights: leave out --weights"),
        (None, {}, r"tells 0, 1, .*, and the images are of dark, light: give images of the same classes"),
        (TINY, {"weights": "ten", "seed": -1}, "seed must not be negative"),
    ],
)
def test_refusals(finished, photos, tmp_path, hasty, model, more, words):
    if "weights" in more:
        more = {**more, "weights": str(tmp_path / "ten.safetensors")}
        save_file(create_model(TINY, num_classes=10).state_dict(), more["weights"])
    with pytest.raises(SettingError, match=words):
        anyvit.shrink(
            model or str(finished.folder),
            data=str(photos),
            budget=NARROW,
            **more,
            levers="heads",
            backends="torch",
            out=str(tmp_path / "o"),
        )
    assert not (tmp_path / "o").exists()


def test_a_budget_out_of_reach_is_said_early(finished, tmp_path):
    with pytest.raises(BudgetError, match="params<=1k"):
        anyvit.shrink(str(finished.folder), data="digits", budget="params<=1k", levers="heads", out=str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_a_plain_vit_becomes_elastic_first_and_answers_as_before(tmp_path, photos, hasty):
    model = timm.create_model("test_vit", num_classes=2).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    arguments = {"levers": "heads", "backends": "torch", "weights": str(tmp_path / "w.safetensors")}
    bundle = anyvit.shrink("test_vit", data=str(photos), budget="params<=1M", **arguments, out=str(tmp_path / "out"))
    images = torch.randn(2, 3, bundle.preprocessing.image_size, bundle.preprocessing.image_size)
    full = next(result for result in bundle.results if result.id == "full-torch")
    torch.testing.assert_close(bundle.runner(full)(images), model(images).softmax(1), rtol=0, atol=1e-5)
    assert any(result.plain.active for result in bundle.results)
