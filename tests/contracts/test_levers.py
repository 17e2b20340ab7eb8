"""What holds for every lever. A new one is tested by being registered."""

import copy
import json

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from anyvit.errors import SettingError
from anyvit.models import share
from anyvit.protocols import UNCHANGED, Lever, Needs, Stage
from anyvit.scaling.shrink import LEVERS, lever_named

levers = pytest.mark.parametrize("lever", LEVERS, ids=lambda lever: lever.name)


def settings(lever: Lever, model: nn.Module) -> list:
    """As a bundle keeps them."""
    return json.loads(json.dumps([dict(setting) for setting in lever.settings(model)]))


def given(lever: Lever, setting: dict, images: torch.Tensor) -> dict:
    return {"images": images} if lever.needs(setting) in (Needs.IMAGES, Needs.LABELS) else {}


@levers
def test_words_and_registry(lever):
    assert lever_named(lever.name) is lever
    assert isinstance(lever.stage, Stage)
    assert all(other in [known.name for known in LEVERS] and why for other, why in lever.conflicts().items())


@levers
def test_settings_are_plain_data_and_begin_with_unchanged(lever, model):
    model = lever.before_training(model, UNCHANGED)
    offered = [dict(setting) for setting in lever.settings(model)]
    assert offered == settings(lever, model)
    assert offered[0] == UNCHANGED
    assert len({json.dumps(setting, sort_keys=True) for setting in offered}) == len(offered) > 1
    assert lever.needs(UNCHANGED) is Needs.NOTHING
    assert all(lever.needs(setting) in Needs for setting in offered)


@levers
def test_unchanged_is_bit_equal(lever, model, images):
    model = lever.before_training(model, UNCHANGED).eval()
    assert torch.equal(lever.apply(model, UNCHANGED)(images), model(images))


@levers
def test_a_plain_model_comes_through_unchanged(lever, images):
    """Before training too: the trainable form answers as the model did."""
    plain = VisionTransformer(img_size=8, patch_size=2, embed_dim=32, depth=2, num_heads=4, num_classes=5).eval()
    if lever.why_not(plain) is None:
        if lever.stage is not Stage.MERGE:  # what is to merge is linear from the start: another model, trained anew
            rounding = 1e-6 if lever.stage is Stage.WRAP else 0  # zero columns: sums may be taken in another order
            trainable = lever.before_training(plain, UNCHANGED).eval()
            torch.testing.assert_close(trainable(images), plain(images), rtol=0, atol=rounding)
        assert torch.equal(lever.apply(plain, lever.settings(plain)[0])(images), plain(images))


@levers
def test_the_model_given_is_untouched(lever, model, images):
    before, answer, mode = copy.deepcopy(model.state_dict()), model(images), model.training
    trainable = lever.before_training(model, UNCHANGED)
    for setting in settings(lever, trainable):
        smaller = lever.apply(trainable, setting, **given(lever, setting, images))
        smaller.train(not mode)
        smaller.reset_classifier(2)
        assert smaller(images).shape == (4, 2)
    assert model.training is mode
    assert torch.equal(model(images), answer)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@levers
def test_the_result_keeps_timms_contract(lever, model, images):
    model = lever.before_training(model, UNCHANGED)
    for setting in settings(lever, model):
        smaller = lever.apply(model, setting, **given(lever, setting, images)).eval()
        features = smaller.forward_features(images)
        assert features.shape[-1] == smaller.num_features
        assert torch.equal(smaller.forward_head(features), smaller(images))
        assert smaller.forward_head(features, pre_logits=True).shape == (4, smaller.head_hidden_size)
        assert smaller.get_classifier().out_features == 5
        assert len(smaller.forward_intermediates(images, intermediates_only=True)) == len(smaller.feature_info)
        assert smaller.no_weight_decay() == model.no_weight_decay()
        assert smaller.pretrained_cfg["input_size"] == model.pretrained_cfg["input_size"]
        for copied in (copy.deepcopy(smaller), share(smaller)):
            assert torch.equal(copied(images), smaller(images))


@levers
def test_stronger_settings_cost_no_more(lever, model, images):
    model = lever.before_training(model, UNCHANGED)
    sizes = []
    for setting in settings(lever, model):
        smaller = lever.apply(model, setting, **given(lever, setting, images))
        sizes.append(sum(parameter.numel() for parameter in smaller.parameters()))
    assert sizes == sorted(sizes, reverse=True)


@levers
def test_a_refusal_gives_its_reason(lever):
    """No lever takes what is no model; what wraps any feature extractor takes a ResNet."""
    with torch.device("meta"):
        strange = timm.create_model("resnet10t"), nn.Linear(2, 2)
    for model in strange[lever.stage is Stage.WRAP :]:
        reason = lever.why_not(model)
        assert reason is not None
        assert type(model).__name__ in reason
        assert "\n" not in reason


@levers
def test_a_setting_of_another_lever_is_refused(lever, model):
    with pytest.raises(SettingError, match=lever.name):
        lever.apply(lever.before_training(model, UNCHANGED), {"no such": 1})


def test_unknown_name():
    with pytest.raises(SettingError, match=r"^unknown lever 'head'\. Did you mean 'heads'\? Known: "):
        lever_named("head")


def test_levers_have_different_names():
    assert len({lever.name for lever in LEVERS}) == len(LEVERS)
