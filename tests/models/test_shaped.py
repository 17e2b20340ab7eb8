"""A plain ViT of any shape."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from anyvit.costs.counts import Specification, count_macs, count_params, vit_macs, vit_params
from anyvit.errors import ModelError
from anyvit.models import create_model, is_plain_vit
from anyvit.models.shaped import SHAPED


@pytest.mark.parametrize(
    "spec",
    [
        Specification(32, 4, 3, 2, 24, 2.5, num_classes=7),
        Specification(28, 7, 1, 3, 16, 1.0, num_classes=3, in_chans=1),
    ],
    ids=str,
)
def test_a_specification_builds_its_model(spec):
    model = create_model(SHAPED, **asdict(spec)).eval()
    assert is_plain_vit(model)
    assert count_params(model) == vit_params(spec)
    assert count_macs(model, spec.image_size, spec.in_chans) == vit_macs(spec)
    assert model(torch.randn(2, spec.in_chans, spec.image_size, spec.image_size)).shape == (2, spec.num_classes)
    assert model.pretrained_cfg["input_size"][1:] == (spec.image_size, spec.image_size)


def test_it_is_deit_tiny_unless_told_otherwise():
    with torch.device("meta"):
        shapes = [
            {n: p.shape for n, p in create_model(m).named_parameters()} for m in (SHAPED, "deit_tiny_patch16_224")
        ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 30, "patch_size": 16}, "image size 30 not divisible by patch size 16"),
        ({"pretrained": True}, "no pretrained weights"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ModelError, match=words):
        create_model(SHAPED, **arguments)
