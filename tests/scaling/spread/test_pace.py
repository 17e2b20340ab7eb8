"""Cost tables hold what a plan asks for."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.errors import ModelError
from anyvit.models import create_model
from anyvit.models.hsvit import HSViT
from anyvit.scaling.spread.pace import macs_of, macs_per_second, measure_costs
from tests.conftest import HASTY


def test_the_parts_of_an_hsvit():
    model = HSViT(img_size=8, in_chans=1, kernels=(6,), pools=(1,), num_groups=3, embed_dim=8, num_heads=2).eval()
    table = measure_costs(model, "tiny", **HASTY)
    assert {mode: sorted(by_count) for mode, by_count in table.seconds.items()} == {
        "hub": [1, 2, 3],
        "boards": [1, 2, 3],
    }
    assert set(table.hub_s) == {"hub", "boards"}
    assert min(table.hub_s.values()) > 0
    assert table.part_s("boards", 3) > 0
    assert (table.model, table.macs) == ("tiny", macs_of(model))


def test_the_submodels_of_a_plain_vit():
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=36, depth=1, num_heads=6, num_classes=3).eval()
    table = measure_costs(model, "tiny", **HASTY)
    assert sorted(table.seconds["heads"]) == [1, 2, 4, 6]
    assert table.hub_s == {}
    assert table.macs == macs_of(model)


def test_the_pace_of_a_machine():
    model = create_model("hsvit_c2a2_8").eval()
    assert 1e5 < macs_per_second(model, **HASTY) < 1e13


def test_what_cannot_be_spread():
    with pytest.raises(ModelError, match="only an HSViT or a plain ViT can be spread: a ResNet is not timm's"):
        measure_costs(timm.create_model("resnet10t").eval(), "resnet", **HASTY)
    whole = HSViT(img_size=8, kernels=(6,), pools=(1,), num_groups=0, embed_dim=8, num_heads=2).eval()
    with pytest.raises(ModelError, match="without attention groups"):
        measure_costs(whole, "whole", **HASTY)


def test_measuring_leaves_the_model_as_it_is():
    model = create_model("hsvit_c2a2_8").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_costs(model, "digits", **HASTY)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
