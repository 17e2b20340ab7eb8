"""The scales lever: a frozen model over several scales, of which the first ones may run alone."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.costs.counts import count_macs
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.multiscale import MultiScale
from anyvit.protocols import UNCHANGED, Needs
from anyvit.scaling.candidate import Step
from anyvit.scaling.form import Form
from anyvit.scaling.shrink import lever_named

LEVER = lever_named("scales")


@pytest.fixture
def plain() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=2, embed_dim=32, depth=1, num_heads=4, num_classes=3).eval()


def test_a_model_is_wrapped_and_frozen(plain):
    trainable = LEVER.before_training(plain, UNCHANGED)
    assert isinstance(trainable, MultiScale)
    assert (trainable.scales, trainable.trained_for) == ((1, 2), (1, 2))
    assert {name.split(".")[0] for name, p in trainable.named_parameters() if p.requires_grad} == {"heads"}
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert LEVER.before_training(trainable, UNCHANGED) is trainable
    assert LEVER.before_training(plain, {"scales": 3}).scales == (1, 2, 3)


def test_fewer_scales_cost_less(plain):
    trainable = LEVER.before_training(plain, {"scales": 3})
    offered = LEVER.settings(trainable)
    assert offered == [UNCHANGED, {"scales": 2}, {"scales": 1}]
    images = torch.randn(2, 3, 8, 8)
    costs = []
    for setting, first in zip(offered, (3, 2, 1), strict=True):
        smaller = LEVER.apply(trainable, setting)
        assert torch.equal(smaller(images), trainable(images, first=first))
        costs.append(count_macs(smaller, 8))
    body = count_macs(plain, 8) - 32 * 3
    assert costs == [body * times + first * 32 * 3 for times, first in ((14, 3), (5, 2), (1, 1))]


def test_a_plain_model_needs_training_first(plain):
    assert LEVER.settings(plain) == [UNCHANGED]
    assert LEVER.apply(plain, UNCHANGED) is plain
    assert LEVER.needs({"scales": 1}) is Needs.TRAINING
    with pytest.raises(ModelError, match=r"^VisionTransformer sees one scale: wrap it in .*MultiScale, then train$"):
        LEVER.apply(plain, {"scales": 2})


def test_any_extractor_is_taken():
    with torch.device("meta"):
        assert LEVER.why_not(create_model("resnet10t")) is None
        assert LEVER.why_not(create_model("swin_tiny_patch4_window7_224")) is None
    assert LEVER.why_not(create_model("hsvit_c2a2_8")) == (
        "the features of a HSViT are neither maps nor a grid of tokens: (1, 4, 32)"
    )


@pytest.mark.parametrize("setting", [{"heads": 2}, {"scales": 0}, {"scales": "2"}, {"scales": 2, "tile": 8}])
def test_wrong_settings_are_refused(plain, setting):
    with pytest.raises(SettingError, match=r"^the scales lever is set by \{'scales': k\}, k from 1: got \{"):
        LEVER.before_training(plain, setting)


def test_its_form_is_rebuilt_from_json():
    form = Form("hydravit_tiny_patch2_8", {"num_classes": 3}, (Step("scales", {"scales": 3}),))
    assert Form.from_json(form.to_json()).build().trained_for == (1, 2, 3)
