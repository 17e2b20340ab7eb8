"""A backbone over several scales as a model of timm's contract."""

import copy

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from anyvit.costs.counts import count_macs, count_params
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.layers.scales import multi_scale
from anyvit.models.multiscale import MultiScale, checkpoint_filter_fn, why_not_multi_scale
from tests.models.conftest import SHAPE, shuffled

BACKBONES = {
    "class token": lambda: VisionTransformer(**SHAPE),
    "registers": lambda: VisionTransformer(**SHAPE, reg_tokens=2),
    "average pool": lambda: VisionTransformer(**SHAPE, global_pool="avg", class_token=False),
    "attention pool": lambda: VisionTransformer(**SHAPE, global_pool="map"),
    "no classifier": lambda: VisionTransformer(**{**SHAPE, "num_classes": 0}),
    "maps": lambda: timm.create_model("resnet10t", num_classes=5),
    "maps, channels last": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1), embed_dim=12, num_heads=(1, 2)
    ),
    "norm in the classifier": lambda: timm.create_model("convnext_atto", num_classes=5, dims=(8, 8, 16, 16)),
}


@pytest.fixture
def vit() -> VisionTransformer:
    return shuffled(VisionTransformer(**SHAPE))


@pytest.mark.parametrize("build", BACKBONES.values(), ids=BACKBONES.keys())
def test_it_begins_as_its_backbone(build):
    """Whatever the backbone is: tokens or maps, and pooled in whichever way."""
    torch.manual_seed(0)
    backbone = build().eval()
    model = MultiScale(backbone, (1, 2, 3), trained_for=(1, 2, 3))
    images = torch.randn(2, 3, *2 * (getattr(getattr(backbone, "patch_embed", None), "img_size", (64,))[0],))
    features, width = model.forward_features(images), backbone.num_features
    expected = backbone.forward_features(images)
    channel = 1 if features.shape[1] == 3 * width and features.ndim == 4 else -1
    torch.testing.assert_close(features.narrow(channel, 0, width), expected, atol=1e-5, rtol=1e-5)
    assert model.num_features == features.shape[channel] == 3 * width
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    if model.num_classes:
        for first in (1, 2, 3):
            torch.testing.assert_close(model(images, first=first), backbone(images), atol=1e-5, rtol=1e-5)
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert [level.shape[1] for level in maps] == [info["num_chs"] for info in model.feature_info]


def test_intermediates_are_those_of_the_scales(vit, images):
    model = MultiScale(vit, max_batch=5)
    features, maps = model.forward_intermediates(images, indices=[0])
    torch.testing.assert_close(features, model.forward_features(images))
    expected = multi_scale(
        lambda tiles: vit.forward_intermediates(tiles, indices=[0], intermediates_only=True)[0], images, [1, 2]
    )
    torch.testing.assert_close(maps, [expected])
    with pytest.raises(SettingError, match="come together as maps, output_fmt 'NCHW': got 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")


@pytest.mark.parametrize(("scales", "times"), [((1, 2), 5), ((1, 2, 3), 14), ((1, 2, 4), 21)])
def test_what_scales_cost(scales, times):
    with torch.device("meta"):
        backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10)
        model = MultiScale(backbone, scales)
    more = 192 * 10 * (len(scales) - 1)
    assert count_params(model) == count_params(backbone) + more
    macs = count_macs(backbone, 32) - 192 * 10
    assert count_macs(model, 32) == times * macs + 192 * 10 * len(scales)


def test_subnetworks_of_the_first_scales(vit, images):
    model = shuffled(MultiScale(vit, (1, 2, 3), trained_for=(1, 3)))
    for first in (1, 3):
        part = model.subnetwork(first)
        assert torch.equal(part(images), model(images, first=first))
        assert part.get_classifier() is not model.heads[str(first)]
        assert part.get_classifier().weight is model.heads[str(first)].weight
        assert part.num_features == first * 32
    assert not torch.equal(model(images), model(images, first=1))
    assert len(model.get_classifier()) == 2
    for call in (lambda: model(images, first=2), lambda: model.subnetwork(2)):
        with pytest.raises(SettingError, match=r"^how many scales run must be one of \[1, 3\]: got 2$"):
            call()


def test_a_frozen_backbone_stays_in_evaluation(images):
    vit = VisionTransformer(**SHAPE, drop_path_rate=0.9, proj_drop_rate=0.5).requires_grad_(False)
    model = MultiScale(vit).train()
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    assert torch.equal(model(images), model(images))
    model(images).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"heads.2.weight", "heads.2.bias"}
    assert MultiScale(VisionTransformer(**SHAPE)).train().backbone.training


def test_training_draws_how_many_scales_run(vit, images):
    model = shuffled(MultiScale(vit.requires_grad_(False), trained_for=(1, 2)))
    alone, both = (model(images, first=first) for first in (1, 2))
    model.train()
    torch.manual_seed(0)
    drawn = [model(images) for _ in range(16)]
    assert all(torch.equal(answer, alone) or torch.equal(answer, both) for answer in drawn)
    assert 0 < sum(torch.equal(answer, both) for answer in drawn) < 16


def test_the_backbone_given_is_untouched(vit, images):
    before, answer = copy.deepcopy(vit.state_dict()), vit(images)
    model = MultiScale(vit)
    model.reset_classifier(2, global_pool="avg")
    assert model(images).shape == (3, 2)
    assert torch.equal(vit(images), answer)
    torch.testing.assert_close(vit.state_dict(), before, rtol=0, atol=0)


def test_timms_contract(vit):
    model = MultiScale(vit)
    assert "backbone.pos_embed" in model.no_weight_decay()
    assert timm.models.group_parameters(model, model.group_matcher())
    model.set_grad_checkpointing()
    assert model.backbone.grad_checkpointing


def test_large_images_in_tiles(vit):
    images = torch.randn(2, 3, 32, 32)
    model = MultiScale(vit, (0.5, 1), tile=16)
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic")
    torch.testing.assert_close(model(images), vit(small), atol=1e-5, rtol=1e-5)


def test_weights_of_the_backbones_family(vit, images):
    model = MultiScale(VisionTransformer(**SHAPE).eval(), trained_for=(1, 2))
    model.load_state_dict(checkpoint_filter_fn(vit.state_dict(), model))
    torch.testing.assert_close(model(images), vit(images), atol=1e-5, rtol=1e-5)
    assert torch.equal(model(images, first=1), vit(images))
    assert checkpoint_filter_fn(model.state_dict(), model).keys() == model.state_dict().keys()


def test_it_exports(vit, images):
    model = shuffled(MultiScale(vit))
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), atol=1e-5, rtol=1e-5)


class Strange(nn.Module):
    """Has the names of timm's contract and answers nothing."""

    num_features = head_hidden_size = 8
    forward_head = get_classifier = lambda self: nn.Identity()

    def forward_features(self, x):
        raise RuntimeError("no\nway")


class FewerTokens(VisionTransformer):
    """Gives half of its patches."""

    def forward_features(self, x):
        return super().forward_features(x)[:, :9]


REFUSED = {
    "a Linear has no forward_features, as timm's models have": lambda: nn.Linear(2, 2),
    "the classifier of a VisionTransformerDistilled is a tuple, not one linear layer": lambda: (
        VisionTransformerDistilled(**SHAPE)
    ),
    "the features of a HSViT are neither maps nor a grid of tokens: (1, 4, 32)": lambda: create_model("hsvit_c2a2_8"),
    "a FewerTokens gives 8 of its 4 x 4 tokens: several scales need the whole grid": lambda: FewerTokens(**SHAPE),
    "a VisionTransformer does not answer an image of 16 pixels: Input width (16) doesn't match model (24).": lambda: (
        VisionTransformer(**{**SHAPE, "img_size": (16, 24)})
    ),
    "a Strange does not answer an image of 224 pixels: no way": Strange,
}


@pytest.mark.parametrize(("reason", "build"), REFUSED.items(), ids=REFUSED.keys())
def test_what_cannot_be_wrapped(reason, build):
    model = build()
    assert why_not_multi_scale(model) == reason
    with pytest.raises(ModelError) as refusal:
        MultiScale(model)
    assert str(refusal.value) == f"{type(model).__name__} cannot see several scales: {reason}"


@pytest.mark.parametrize("numbers", [(), (1,), (2, 1), (0, 2), (1, 2, 3), (1, 1, 2)])
def test_wrong_numbers_are_refused(vit, numbers):
    with pytest.raises(SettingError, match="^trained_for must be rising numbers of scales that end with all 2: got "):
        MultiScale(vit, trained_for=numbers)
