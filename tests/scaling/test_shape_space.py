"""The shapes that a search goes through, and the well-known ones beside them."""

from __future__ import annotations

import pytest
import torch

from anyvit.costs.counts import Specification, count_params, vit_macs, vit_params
from anyvit.errors import SettingError
from anyvit.models import create_model
from anyvit.models.contract import blocks_of
from anyvit.scaling.design.relatives import RELATIVES, relatives
from anyvit.scaling.design.shape_space import ASPECT, TOKENS, ShapeGenes, is_sensible, limits_for
from anyvit.scaling.design.supernet import Band

BAND = Band(vit_macs, 0.85e9, 1e9)


def test_a_draw_is_sensible_and_mostly_inside_the_band():
    genes = ShapeGenes(224, 1000)
    drawn = [genes.draw(BAND) for _ in range(60)]
    inside = [spec for spec in drawn if BAND.holds(spec) and is_sensible(spec)]
    assert len(inside) > 10
    for spec in inside:
        assert TOKENS[0] <= spec.num_patches <= TOKENS[1]
        assert ASPECT[0] <= spec.embed_dim / spec.depth <= ASPECT[1]


def test_children_have_the_genes_of_their_parents():
    genes = ShapeGenes(64, 10)
    mother, father = Specification(64, 8, 4, 2, 32, 2.0, 10), Specification(64, 4, 9, 5, 64, 4.0, 10)
    for _ in range(20):
        child = genes.cross(mother, father)
        assert child.depth in (4, 9)
        assert child.patch_size in (4, 8)
        assert genes.mutate(mother).image_size == 64


def test_the_smallest_images_have_patches_too():
    assert limits_for(8).patch_sizes == (2,)
    assert limits_for(32).patch_sizes == (4, 2)
    with pytest.raises(SettingError, match="image size 17 has no patch size"):
        limits_for(17)


@pytest.mark.parametrize("name", [name for name in RELATIVES if name.endswith("patch16_224") or "patch32" in name])
def test_relatives_are_what_timm_builds(name):
    size = int(name.rsplit("_", 1)[-1])
    with torch.device("meta"):
        model = create_model(name)
    spec = relatives(size, 1000)[name]
    block = blocks_of(model)[0]
    assert (spec.depth, spec.heads, spec.head_dim) == (len(model.blocks), block.attn.num_heads, block.attn.head_dim)
    if "clip" not in name and "deit3" not in name:  # which add a norm, and a scale of layers
        assert count_params(model) == vit_params(spec)


def test_relatives_whose_patches_do_not_divide_are_left_out():
    assert all("patch32" not in name for name in relatives(48, 10))
