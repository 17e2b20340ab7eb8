"""Prefixes of a plain ViT: nested, and free to differ by block."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from anyvit.models import HydraViT, elastic, share
from anyvit.models.layers.sliceable import Prefix, cut_to_views, extracted
from tests.models.conftest import SHAPE, shuffled


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    head_dim=st.integers(1, 5),
    num_heads=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    options=st.sampled_from([{}, {"qk_norm": True}, {"init_values": 1.0}, {"qkv_bias": False}, {"reg_tokens": 1}]),
)
def test_a_slice_of_a_slice_is_a_slice(head_dim, num_heads, sizes, options):
    small, large = sorted(min(size, num_heads) for size in sizes)
    shape = {**SHAPE, "embed_dim": num_heads * head_dim, "num_heads": num_heads, "depth": 1, **options}
    hydra = shuffled(HydraViT(**shape))
    twice = elastic(hydra.extract(large)).extract(small).state_dict()
    once = hydra.extract(small).state_dict()
    assert twice.keys() == once.keys()
    assert all(torch.equal(twice[name], once[name]) for name in once)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(hydra(images, heads=small), hydra.extract(small)(images))


def test_blocks_may_keep_different_numbers_of_mlp_units():
    """As MatFormer nests: all channels and heads, some of the MLP units."""
    model = shuffled(VisionTransformer(**SHAPE))
    images = torch.randn(2, 3, 16, 16)
    nested = share(model)
    cut_to_views(nested, [Prefix(embed=32, heads=4, hidden=64), Prefix(embed=32, heads=4, hidden=16)])
    assert [block.mlp.fc1.out_features for block in nested.blocks] == [64, 16]
    with torch.no_grad():
        for block, hidden in zip(model.blocks, (64, 16), strict=True):
            block.mlp.fc2.weight[:, hidden:] = 0
    torch.testing.assert_close(nested(images), model(images))
    assert torch.equal(extracted(nested)(images), nested(images))
