"""A plain ViT cut to any of its units: what masks say, in an ordinary timm ViT."""

from dataclasses import replace

import pytest
import torch
from timm.layers import GluMlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from anyvit.errors import ModelError, SettingError
from anyvit.models import HydraViT
from anyvit.models.layers.indexed import Kept, sliced
from tests.models.conftest import SHAPE, shuffled

OPTIONS = [
    {},
    {"qk_norm": True},
    {"init_values": 1.0},
    {"qkv_bias": False, "proj_bias": False},
    {"reg_tokens": 2, "no_embed_class": True},
    {"global_pool": "avg", "class_token": False},
    {"pre_norm": True, "fc_norm": True},
]
SOME = Kept(
    embed=tuple(channel for channel in range(32) if channel not in (0, 3, 17, 31)),
    heads=((0, 2), (1, 3)),
    hidden=(tuple(range(0, 128, 2)), tuple(range(1, 128, 2))),
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_everything_kept_is_the_model(options, images):
    model = shuffled(VisionTransformer(**SHAPE, **options))
    twin = sliced(model, Kept.everything(model))
    assert torch.equal(twin(images), model(images))
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in twin.parameters()}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masks_of_heads_and_hidden_units_say_the_same(options, images):
    model = shuffled(VisionTransformer(**SHAPE, **options)).double()
    kept = replace(SOME, embed=tuple(range(32)))
    smaller = sliced(model, kept)
    for block, heads, hidden in zip(model.blocks, kept.heads, kept.hidden, strict=True):
        mask(block.attn.proj, [8 * head + place for head in heads for place in range(8)])
        mask(block.mlp.fc2, hidden)
    torch.testing.assert_close(smaller(images.double()), model(images.double()), rtol=1e-12, atol=1e-12)


def mask(layer, stays):
    gone = torch.ones(layer.in_features, dtype=bool)
    gone[list(stays)] = False
    with torch.no_grad():
        layer.weight[:, gone] = 0


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"init_values": 1.0}, {"reg_tokens": 2}], ids=str)
def test_timms_constructor_makes_the_same_form(options, images):
    model = shuffled(VisionTransformer(**SHAPE, **options))
    kept = replace(SOME, embed=tuple(range(0, 32, 2)), hidden=(tuple(range(64)),) * 2)
    smaller = sliced(model, kept)
    theirs = VisionTransformer(**{**SHAPE, "embed_dim": 16, "num_heads": 2}, **options).eval()
    theirs.load_state_dict(smaller.state_dict())
    assert torch.equal(theirs(images), smaller(images))
    assert smaller.embed_dim == smaller.num_features == smaller.feature_info[0]["num_chs"] == 16


def test_channels_are_removed_from_every_part():
    model = shuffled(VisionTransformer(**SHAPE))
    state, full = sliced(model, SOME).state_dict(), model.state_dict()
    channels, (first, _) = torch.tensor(SOME.embed), SOME.heads
    inside = torch.tensor([8 * head + place for head in first for place in range(8)])
    rows = torch.cat([part * 32 + inside for part in range(3)])
    assert torch.equal(state["pos_embed"], full["pos_embed"][..., channels])
    assert torch.equal(state["blocks.0.attn.qkv.weight"], full["blocks.0.attn.qkv.weight"][rows][:, channels])
    assert torch.equal(state["blocks.0.attn.qkv.bias"], full["blocks.0.attn.qkv.bias"][rows])
    assert torch.equal(state["head.weight"], full["head.weight"][:, channels])


def test_a_distillation_token_is_cut_too(images):
    model = shuffled(VisionTransformerDistilled(**SHAPE))
    smaller = sliced(model, SOME)
    assert smaller(images).shape == (3, 5)
    assert (smaller.dist_token.shape[-1], smaller.head_dist.in_features) == (28, 28)


def test_the_form_needs_no_weights():
    model = VisionTransformer(**SHAPE)
    form = sliced(model.to("meta"), SOME)
    weights = sliced(shuffled(VisionTransformer(**SHAPE)), SOME).state_dict()
    assert {name: tensor.shape for name, tensor in form.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


def test_training_a_slice_leaves_the_model(images):
    model = shuffled(VisionTransformer(**SHAPE))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller = sliced(model, SOME)
    smaller(images).sum().backward()
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.sub_(parameter.grad)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_what_is_kept_survives_json():
    assert Kept.from_json(SOME.to_json()) == SOME


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (VisionTransformer(**SHAPE, mlp_layer=GluMlp), "blocks.0.mlp is a GluMlp"),
        (HydraViT(**SHAPE), r"a forward of its own; an elastic ViT gives a plain one by `extract"),
        (torch.nn.Linear(2, 2), "a Linear is not timm's VisionTransformer"),
    ],
    ids=["gated", "elastic", "no ViT"],
)
def test_what_cannot_be_cut(model, words):
    with pytest.raises(ModelError, match=words):
        sliced(model, SOME)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed": ()}, "channels that stay"),
        ({"embed": (1, 32)}, r"below 32: got \[1, 32\]"),
        ({"heads": ((0,), (1, 0))}, r"heads of blocks.1 that stay .* got \[1, 0\]"),
        ({"hidden": ((5, 5), (0,))}, "hidden units of blocks.0"),
        ({"heads": ((0,),)}, "the model has 2 blocks, not 1 and 2"),
    ],
)
def test_positions_that_are_none(change, words):
    with pytest.raises(SettingError, match=words):
        sliced(VisionTransformer(**SHAPE), replace(SOME, **change))
