"""Any plain timm ViT becomes elastic; what cannot be cut says which part stands in the way."""

import pytest
import timm
import torch
from timm.layers import GluMlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock, VisionTransformer
from torch import nn

from anyvit.errors import ModelError, SettingError
from anyvit.models import HydraViT, elastic, why_not_plain
from tests.models.conftest import SHAPE, shuffled

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "positions without the class token": {"no_embed_class": True, "reg_tokens": 1},
    "no positions": {"pos_embed": "none", "class_token": False, "global_pool": "avg"},
    "average pool": {"global_pool": "avg"},
    "no class token": {"global_pool": "avg", "class_token": False},
    "average pool before the norm": {"global_pool": "avg", "fc_norm": False},
    "no final norm": {"final_norm": False},
    "norm before the blocks": {"pre_norm": True},
    "norm of patches": {"embed_norm_layer": "layernorm"},
    "layer scale": {"init_values": 0.1},
    "norms of queries and keys": {"qk_norm": True},
    "norms inside attention and MLP": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "root mean square norms": {"norm_layer": "rmsnorm"},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "images of any size": {"dynamic_img_size": True},
    "padded images": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "narrow MLP": {"mlp_ratio": 1.5},
    "features only": {"num_classes": 0},
    "one channel": {"in_chans": 1},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_plain_vit_becomes_elastic(variant):
    arguments = {**SHAPE, **variant}
    plain = shuffled(VisionTransformer(**arguments))
    hydra = elastic(plain)
    images = torch.randn(2, arguments.get("in_chans", 3), 16, 16)
    assert type(plain) is VisionTransformer
    assert isinstance(hydra, HydraViT)
    assert torch.equal(hydra(images), plain(images))
    assert hydra.elastic_heads == (1, 2, 3, 4)
    built = VisionTransformer(**{**arguments, "embed_dim": 16, "num_heads": 2}).eval()
    built.load_state_dict(hydra.extract(2).state_dict())
    for model in (hydra.subnetwork(2), hydra.extract(2)):
        assert torch.equal(model(images), built(images))
    assert torch.equal(hydra(images, heads=2), built(images))
    hydra(images, heads=2).sum().backward()
    assert all(parameter.grad is not None for parameter in hydra.parameters())
    assert all(parameter.grad is None for parameter in plain.parameters())


def test_distilled_deit_keeps_both_classifiers():
    plain = shuffled(VisionTransformerDistilled(**SHAPE))
    hydra = elastic(plain)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(hydra(images), plain(images))
    narrow = hydra.extract(2)
    assert type(narrow) is VisionTransformerDistilled
    built = VisionTransformerDistilled(**{**SHAPE, "embed_dim": 16, "num_heads": 2}).eval()
    built.load_state_dict(narrow.state_dict())
    assert torch.equal(hydra(images, heads=2), built(images))
    with pytest.raises(ModelError, match=r"^separate classifiers do not go with a distillation token"):
        elastic(plain, separate_classifiers=True)


def test_separate_classifiers_start_as_what_each_used():
    plain = shuffled(VisionTransformer(**SHAPE))
    together, apart = elastic(plain), elastic(plain, [2, 4], separate_classifiers=True)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(apart(images), plain(images))
    torch.testing.assert_close(apart(images, heads=2), together(images, heads=2))


def test_elastic_again_changes_the_list():
    hydra = elastic(shuffled(VisionTransformer(**SHAPE)))
    assert elastic(hydra, range(2, 5)).elastic_heads == (2, 3, 4)
    with pytest.raises(SettingError, match="elastic heads must be whole numbers from 1 to 4"):
        elastic(hydra, [4, 8])


def _with_other_heads() -> nn.Module:
    model = VisionTransformer(**SHAPE)
    model.blocks[1].attn.num_heads, model.blocks[1].attn.head_dim = 2, 16
    return model


def _with(**changes) -> nn.Module:
    model = VisionTransformer(**SHAPE)
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def _hybrid() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_tiny_r_s16_p8_224")


REFUSED = {
    "a ResNet is not timm's VisionTransformer": lambda: timm.create_model("resnet10t"),
    "blocks.0.mlp is a GluMlp, not two linear layers": lambda: VisionTransformer(**SHAPE, mlp_layer=GluMlp),
    "blocks.0 is a ParallelScalingBlock, not a plain block of attention and MLP": lambda: VisionTransformer(
        **SHAPE, block_fn=ParallelScalingBlock
    ),
    "blocks.0 is a DiffParallelScalingBlock, not a plain block of attention and MLP": lambda: VisionTransformer(
        **SHAPE, block_fn=DiffParallelScalingBlock
    ),
    "blocks.0.attn is a DiffAttention, not plain self-attention": lambda: VisionTransformer(**SHAPE, attn_layer="diff"),
    "it pools with AttentionPoolLatent, which has heads of its own": lambda: VisionTransformer(
        **SHAPE, global_pool="map"
    ),
    "patch_embed is a HybridEmbed, not one convolution": _hybrid,
    "its blocks differ in (heads, head_dim): [(2, 16), (4, 8)]": _with_other_heads,
    "head.0 is a Linear, and what of it belongs to which head is not known": lambda: _with(
        head=nn.Sequential(nn.Linear(32, 5))
    ),
    "norm is a BatchNorm1d, and what of it belongs to which head is not known": lambda: _with(norm=nn.BatchNorm1d(17)),
    "the model has a parameter scale, and what of it belongs to which head is not known": lambda: _with(
        scale=nn.Parameter(torch.ones(32))
    ),
    "blocks.0.attn.qkv is a StackedLinear, and what of it belongs to which head is not known": lambda: HydraViT(
        **SHAPE
    ).subnetwork(2),
}


@pytest.mark.parametrize(("reason", "build"), REFUSED.items(), ids=REFUSED.keys())
def test_what_cannot_be_cut_is_refused_with_the_part(reason, build):
    model = build()
    with pytest.raises(ModelError) as refusal:
        elastic(model)
    assert str(refusal.value) == f"{type(model).__name__} cannot be made elastic: {reason}"


def test_plain_is_about_blocks_alone():
    assert why_not_plain(VisionTransformer(**SHAPE, mlp_layer=GluMlp)) is None
    assert why_not_plain(VisionTransformer(**SHAPE, global_pool="map")) is None
