"""An MLP whose idle units merge answers the same afterwards, whatever its shape, and says why where it cannot."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import GluMlp, GroupNorm1, LayerScale, Mlp
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, Pooling, Scale
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.utils import reparameterize_model
from torch import nn

from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.layers.channel_idle import (
    ChannelIdleMlp,
    MergedMlp,
    TokenBatchNorm,
    active_units,
    channel_idle,
    idle_mlps,
    idle_share,
    merged,
    why_not_idle,
)
from tests.models.conftest import shuffled

WIDTH = 12
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
POOLFORMER = {"norm_layers": GroupNorm1, "mlp_act": nn.GELU, "mlp_bias": True, "layer_scale_init_values": 0.1}
CAFORMER = {"token_mixers": [Pooling, Attention], "norm_layers": [LayerNorm2dNoBias, LayerNormNoBias]}
TIMMS = {
    "vit": (VisionTransformer, {**VIT, "init_values": 0.1}),
    "swin": (SwinTransformer, {"img_size": 32, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2)}),
    "poolformer": (MetaFormer, {"depths": (1, 1), "dims": (12, 16), **POOLFORMER}),
    "caformer": (MetaFormer, {"depths": (1, 1), "dims": (32, 64), "res_scale_init_values": 1.0, **CAFORMER}),
}


def mlp_of(idle_ratio, mlp_ratio, *, bias, scaled, maps, act=nn.GELU):
    hidden = WIDTH * mlp_ratio
    mlp = Mlp(WIDTH, hidden, act_layer=act, bias=bias, use_conv=maps)
    scale = nn.Identity() if not scaled else Scale(WIDTH) if maps else LayerScale(WIDTH)
    return trained(ChannelIdleMlp(mlp, active_units(hidden, idle_ratio), scale=scale))


def trained(model):
    """In float64, with weights and statistics that no part of a merge can pass over."""
    shuffled(model)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.double()


@given(
    idle_ratio=st.sampled_from([0, 0.25, 0.5, 0.75, 1]),
    mlp_ratio=st.sampled_from([2, 3, 4]),
    bias=st.booleans(),
    scaled=st.booleans(),
    maps=st.booleans(),
    act=st.sampled_from([nn.GELU, nn.ReLU]),
)
@settings(max_examples=120, deadline=None)
def test_merged_equals_unmerged(idle_ratio, mlp_ratio, **kind):
    mlp = mlp_of(idle_ratio, mlp_ratio, **kind)
    x = torch.randn(2, WIDTH, 3, 5).double() if kind["maps"] else torch.randn(2, 7, WIDTH).double()
    smaller = mlp.fuse()
    assert (smaller(x) - mlp(x)).abs().max() < 1e-9
    active = mlp.active
    assert sum(p.numel() for p in smaller.parameters()) == WIDTH * (WIDTH + 2 * active + 1) + active
    weights = [sum(p.numel() for p in form.parameters() if p.ndim > 1) for form in (smaller, mlp)]
    assert mlp.saves is (weights[0] < weights[1])


@pytest.mark.parametrize(("family", "arguments"), TIMMS.values(), ids=TIMMS)
def test_timms_models_take_the_form_and_merge(family, arguments):
    plain = family(**arguments).double().eval()
    images = torch.randn(2, 3, 32, 32).double()
    before = plain(images)
    model = trained(channel_idle(plain, 0.5))
    answer = model(images)
    assert (merged(model)(images) - answer).abs().max() < 1e-9
    assert (reparameterize_model(model)(images) - answer).abs().max() < 1e-9
    assert torch.equal(model(images), answer)
    assert torch.equal(plain(images), before)
    assert idle_share(model) == 0.5
    logits = model.train()(images)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_norm_starts_as_the_norm_that_it_replaces():
    plain = VisionTransformer(**VIT)
    nn.init.normal_(plain.blocks[0].norm2.weight)
    mlp = channel_idle(plain, 0.5).blocks[0].mlp
    assert torch.equal(mlp.norm1.weight, plain.blocks[0].norm2.weight)
    assert torch.equal(mlp.fc1.weight, plain.blocks[0].mlp.fc1.weight)


def test_statistics_are_over_images_and_tokens():
    norm = TokenBatchNorm(WIDTH)
    x = torch.randn(3, 7, WIDTH)
    reference = nn.BatchNorm1d(WIDTH)
    torch.testing.assert_close(norm(x), reference(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_active_units_are_counted_as_the_reference_does():
    assert active_units(120, 0.7) == 37  # 36 and some rounding noise
    assert [active_units(48, ratio) for ratio in (0, 0.25, 0.5, 0.75, 1)] == [48, 36, 24, 12, 0]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, True, "0.5"])
def test_an_idle_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(SettingError, match=rf"^an idle ratio must be a number from 0 to 1: got {ratio!r}$"):
        active_units(48, ratio)


def test_a_block_that_would_grow_stays_as_it_is():
    model = trained(channel_idle(VisionTransformer(**VIT), 0.75))
    model.blocks[1].mlp.active = 90  # of 96: 24 + 2 * 90 is more than 2 * 96
    smaller = merged(model)
    assert type(smaller.blocks[0].mlp) is MergedMlp
    assert type(smaller.blocks[1].mlp) is ChannelIdleMlp


def test_merging_is_refused_with_the_reason():
    plain = VisionTransformer(**VIT).eval()
    model = channel_idle(plain, 0.5)
    smaller = merged(model)
    layered = create_model("repavit_tiny_patch2_8", feature_norm="layer").eval()
    for wrong, reason in (
        (smaller, "it is merged already"),
        (plain, "its MLPs are not channel-idle: make them so"),
        (layered, "a LayerNorm depends on each token; only BatchNorm becomes part of a matrix"),
        (model.train(), "it is in training mode, in which BatchNorm depends on the batch: call eval"),
    ):
        with pytest.raises(ModelError, match=rf"^{type(wrong).__name__} cannot be merged: {reason}"):
            merged(wrong)
    with pytest.raises(ModelError, match=r"^this MLP cannot be merged: it is in training mode"):
        idle_mlps(model)[0].fuse()


def test_the_form_is_refused_with_the_reason():
    glu = VisionTransformer(**VIT, mlp_layer=GluMlp)
    normed = VisionTransformer(**VIT, scale_mlp_norm=True)
    smaller = merged(create_model("repavit_tiny_patch2_8").eval())
    assert why_not_idle(glu) == "blocks.0.mlp is a GluMlp, not two linear layers"
    assert why_not_idle(normed) == "blocks.0.mlp has a LayerNorm between its matrices"
    assert why_not_idle(smaller) == "blocks.0.mlp is merged already"
    with pytest.raises(ModelError, match=r"^Linear cannot be made channel-idle: a Linear has no blocks with an MLP"):
        channel_idle(nn.Linear(2, 2), 0.5)
    with pytest.raises(ModelError, match=r"^HydraViT cannot be made channel-idle: BatchNorm keeps .*: extract a sub"):
        channel_idle(create_model("hydravit_tiny_patch2_8"), 0.5)
    with pytest.raises(ModelError, match=r"^RePaViT cannot be made channel-idle: it has this form already$"):
        channel_idle(create_model("repavit_tiny_patch2_8"), 0.5)


def test_training_a_merged_model_warns():
    smaller = merged(create_model("repavit_tiny_patch2_8", depth=1).eval())
    assert not any(module.training for module in smaller.modules())
    with pytest.warns(UserWarning, match="has lost the BatchNorms that it was trained with"):
        smaller.train()
