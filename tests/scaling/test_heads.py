"""The heads lever: UNCHANGED and every subnetwork the model is trained for."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.errors import ModelError, SettingError
from anyvit.models import HydraViT, create_model
from anyvit.protocols import UNCHANGED, Needs
from anyvit.scaling.shrink import lever_named

LEVER = lever_named("heads")


def _plain() -> VisionTransformer:
    return VisionTransformer(img_size=8, patch_size=2, embed_dim=32, depth=1, num_heads=4)


def test_settings_are_what_the_model_is_trained_for():
    model = create_model("hydravit_small_patch2_8", num_classes=3).eval()
    assert LEVER.settings(model) == [UNCHANGED, {"heads": 5}, {"heads": 4}, {"heads": 3}]
    images = torch.randn(2, 3, 8, 8)
    for setting in LEVER.settings(model):
        smaller = LEVER.apply(model, setting)
        assert type(smaller) is VisionTransformer
        assert torch.equal(smaller(images), model(images, **setting))
    assert LEVER.before_training(model, UNCHANGED) is model


def test_a_plain_vit_needs_training_first():
    plain = _plain()
    assert LEVER.why_not(plain) is None
    assert LEVER.settings(plain) == [UNCHANGED]
    assert LEVER.needs({"heads": 2}) is Needs.TRAINING
    with pytest.raises(ModelError, match=r"^VisionTransformer is not elastic: make it so with anyvit\.elastic"):
        LEVER.apply(plain, {"heads": 2})
    elastic = LEVER.before_training(plain, UNCHANGED)
    assert isinstance(elastic, HydraViT)
    assert elastic.elastic_heads == (1, 2, 3, 4)
    assert LEVER.before_training(plain, {"heads": 3}).elastic_heads == (3, 4)


def test_separate_classifiers_do_not_stand_in_the_way():
    model = create_model("hydravit_small_patch2_8", num_classes=3, separate_classifiers=True).eval()
    assert LEVER.why_not(model) is None
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(LEVER.apply(model, UNCHANGED)(images), model(images))
    assert torch.equal(LEVER.apply(model, {"heads": 3})(images), model(images, heads=3))


def test_wrong_settings_are_refused():
    with pytest.raises(SettingError, match=r"^the heads lever is set by \{'heads': k\}: got \{'tokens': 2\}$"):
        LEVER.apply(create_model("hydravit_tiny_patch2_8"), {"tokens": 2})
    with pytest.raises(SettingError, match=r"^heads must be from 1 to 3: got 7$"):
        LEVER.apply(create_model("hydravit_tiny_patch2_8"), {"heads": 7})
