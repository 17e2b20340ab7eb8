"""A ViT split by classes, from data to fused answers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.costs.counts import Specification, count_params
from anyvit.data import open_data
from anyvit.data.dataset import Split
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError, Interrupted, SettingError
from anyvit.models.layers.indexed import Kept
from anyvit.scaling.spread import submodel as submodel_module
from anyvit.scaling.spread.class_split import split_by_classes
from anyvit.scaling.spread.classes import deal_classes
from anyvit.scaling.spread.family import Family
from anyvit.scaling.spread.submodel import data_of, empty_submodel, foreign_per_class
from anyvit.training.objectives.classification import Classification
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train
from tests.training.conftest import tinted_data

RECIPE = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=16, lr=5e-3, mixing=0)


@pytest.fixture
def data():
    return tinted_data()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=4).eval()


@pytest.fixture
def split(model, data, tmp_path):
    """`split_by_classes` with defaults."""

    def split(**changes):
        arguments = {
            "preprocessing": Preprocessing(image_size=8),
            "recipe": RECIPE,
            "folder": tmp_path / "split",
            "epochs": 1,
            "images": 8,
            "fusion_epochs": 4,
        }
        data_, groups, heads = (
            changes.pop("data", data),
            changes.pop("groups", ((0, 2), (1, 3))),
            changes.pop("heads", (2, 1)),
        )
        return split_by_classes(model, data_, groups, heads, **{**arguments, **changes})

    return split


def test_a_split_is_what_was_asked(split, model):
    found = split()
    assert [submodel.classes for submodel in found.submodels] == [(0, 2), (1, 3)]
    assert [submodel.model.num_features for submodel in found.submodels] == [8, 4]
    assert [submodel.model.num_classes for submodel in found.submodels] == [3, 3]
    assert [(each.missing, each.sets) for each in found.missing] == [(0, 1), (1, 2)]
    images = torch.randn(2, 3, 8, 8)
    assert found(images).sum(1).tolist() == pytest.approx([1, 1])
    assert not torch.equal(found(images, absent=[1]), found(images))
    with pytest.raises(SettingError, match="one of them at least"):
        found(images, absent=[0, 1])
    document = json.loads(json.dumps(found.to_json()))
    for submodel, said in zip(found.submodels, document["submodels"], strict=True):
        form = empty_submodel(model, Kept.from_json(said["kept"]), len(said["classes"]) + said["other_class"])
        form.load_state_dict(submodel.model.state_dict())
        assert torch.equal(form.eval()(images), submodel.model(images))


def test_the_same_seed_gives_the_same_split(split, tmp_path):
    one, same, other = (split(folder=tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert weights(one) == weights(same) != weights(other)


def weights(found):
    return [tensor.tolist() for each in found.submodels for tensor in each.model.state_dict().values()] + [
        tensor.tolist() for tensor in found.fusion.state_dict().values()
    ]


def test_an_interrupted_split_goes_on_where_it_was(split, tmp_path, monkeypatch):
    whole, calls = split(folder=tmp_path / "whole"), []

    def stop(*arguments, **settings):
        if settings["folder"].parent.name == "submodel-1":
            raise Interrupted("stopped")
        return train(*arguments, **settings)

    def counted(*arguments, **settings):
        calls.append(arguments)
        return prune(*arguments, **settings)

    prune = submodel_module.prune
    with monkeypatch.context() as patch:
        patch.setattr(submodel_module, "train", stop)
        with pytest.raises(Interrupted):
            split()
    monkeypatch.setattr(submodel_module, "prune", counted)
    assert weights(split()) == weights(whole)
    assert calls == []  # both were pruned before
    with pytest.raises(SettingError, match="with heads 2, not 1"):
        split(heads=(1, 1))


def test_the_other_class_is_a_few_images_of_each(data):
    data = dataclasses.replace(data, splits={**data.splits, "train": repeated(data.splits["train"], 3)})
    own, foreign = data_of(data, (1, 3))
    assert own.classes == ("other", "b", "d")
    assert foreign == foreign_per_class(216, 4, 2) == 3
    train = own.splits["train"]
    assert np.bincount(train.labels).tolist() == [6, 54, 54]
    originals = [data.splits["train"].labels[place] for place in train.images.indices]
    assert [{1: 1, 3: 2}.get(label, 0) for label in originals] == train.labels.tolist()
    assert set(own.splits["val"].labels) == {1, 2}


def repeated(split, times):
    images = split.images
    twice = type(images)(images.pixels * times, images.names * times)
    return Split(twice, np.tile(split.labels, times))


def test_without_the_other_class(data):
    own, foreign = data_of(data, (1, 3), other_class=False)
    assert (own.classes, foreign) == (("b", "d"), 0)
    assert np.bincount(own.splits["train"].labels).tolist() == [18, 18]
    with pytest.raises(SettingError, match="the one class b has nothing to tell it from"):
        data_of(data, (1,), other_class=False)


def test_weights_of_classes_go_with_them(data):
    weighted = dataclasses.replace(data, class_weights=np.array([0.5, 1, 1.5, 2], dtype=np.float32))
    assert data_of(weighted, (1, 3))[0].class_weights.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("images", "classes", "own", "expected"), [(50_000, 10, 5, 495), (1400, 10, 5, 9), (200, 10, 5, 0), (100, 10, 1, 0)]
)
def test_how_many_foreign_images(images, classes, own, expected):
    assert foreign_per_class(images, classes, own) == expected


def test_a_group_without_images(split, data):
    train = data.splits["train"]
    few = [place for place, label in enumerate(train.labels) if label != 3]
    lacking = Split(
        type(train.images)([train.images.pixels[place] for place in few], [str(p) for p in few]), train.labels[few]
    )
    with pytest.raises(DataError, match="tinted has no train images of d: put them with other classes"):
        split(data=dataclasses.replace(data, splits={**data.splits, "train": lacking}), groups=((0, 1, 2), (3,)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": ((0, 1), (2,))}, "each of the 4 classes belongs to exactly one group"),
        ({"groups": ((0, 1, 2, 3), ())}, "each of the 4 classes belongs to exactly one group"),
        ({"heads": (1,)}, r"each of 2 sub-models keeps a number of heads: got \[1\]"),
        ({"heads": (0, 1)}, "from 1 to 3: got 0"),
    ],
)
def test_what_is_no_split(split, changes, words):
    with pytest.raises(SettingError, match=words):
        split(**changes)


def test_sizes_on_digits():
    base = Family.of_shape(Specification(8, 2, 3, 6, 8, num_classes=10, in_chans=1))
    assert (base.size(6, 10).params, base.size(3, 6).params) == (86_506, 22_422)


@pytest.mark.slow
def test_digits_from_end_to_end(tmp_path):
    data, preprocessing = open_data("digits", seed=0), Preprocessing(image_size=8)
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=2, embed_dim=48, depth=3, num_heads=6, num_classes=10)
    arguments = {
        "preprocessing": preprocessing,
        "recipe": dataclasses.replace(RECIPES["scratch-tiny"], lr=1e-3),
    }
    base = train(model, data, objective=Classification(), folder=tmp_path / "base", epochs=28, **arguments).model
    groups = deal_classes(10, 2)
    found = split_by_classes(base, data, groups, (3, 3), folder=tmp_path / "split", epochs=28, images=96, **arguments)
    with torch.inference_mode():
        batches = list(evaluation_batches(data.splits["test"], preprocessing))
        alone, fused = (
            np.mean(np.concatenate([(answer(images).argmax(1) == truth).numpy() for images, truth in batches]))
            for answer in (base, found)
        )
    assert fused >= alone - 0.05
    assert all(submodel.accuracy > 0.85 for submodel in found.submodels)
    assert count_params(base) / count_params(found.submodels[0].model) == pytest.approx(3.84, abs=0.01)
    assert found.missing[0].mean > found.missing[1].mean > 0.3
