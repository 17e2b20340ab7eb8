"""Closed forms are those of the model that is built, and of the specification's tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from anyvit.costs.counts import count_macs, count_params, weights_size
from anyvit.models.hsvit import VARIANTS, HSViT
from anyvit.scaling.spread.sizes import HSViTShape

TINY = {"img_size": 8, "kernels": (8, 16), "pools": (2, 1), "num_groups": 4, "embed_dim": 8, "num_heads": 2}

PUBLISHED = {  # parameters, GMACs
    "hsvit_c2a2_32": (812_298, 0.102),
    "hsvit_c3a4_32": (2_242_826, 0.344),
    "hsvit_c4a8_32": (6_873_354, 0.638),
    "hsvit_c2a2_28": (810_186, 0.078),
    "hsvit_c3a4_28": (2_240_714, 0.267),
    "hsvit_c4a8_28": (6_871_242, 0.508),
    "hsvit_c2a2_64": (824_648, 0.220),
    "hsvit_c3a4_64": (2_255_176, 0.632),
    "hsvit_c4a8_64": (6_885_704, 0.927),
    "hsvit_c2a2_128": (818_213, 0.864),
    "hsvit_c3a4_128": (2_248_741, 1.107),
    "hsvit_c4a8_128": (6_879_269, 3.439),
    "hsvit_wide_c4a8_32": (11_484_874, 1.678),
    "hsvit_wide_c4a8_28": (11_481_610, 1.303),
    "hsvit_wide_c4a8_64": (11_497_224, 2.821),
    "hsvit_c5a8_256": (6_964_616, 4.374),
}


def shape_of(name, **changes):
    return HSViTShape.of({**VARIANTS[name].arguments, **changes})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table(name):
    params, gmacs = PUBLISHED[name]
    whole = shape_of(name).whole()
    assert (whole.params, round(whole.macs / 1e9, 3)) == (params, gmacs)


@pytest.mark.parametrize(
    ("changes", "params"),
    [
        ({"num_classes": 100}, 6_879_204),
        ({"kernel_sizes": (3, 3, 3, 0), "img_size": 8}, 2_181_898),
        ({"num_groups": 0}, 4_692_234),
    ],
    ids=["CIFAR-100", "no convolution", "no attention"],
)
def test_published_changes_of_c4a8(changes, params):
    assert shape_of("hsvit_c4a8_32", **changes).whole().params == params


def test_the_hybrid_counts_its_cnn_once():
    whole = shape_of("hsvit_resnet50_224").whole()
    with torch.device("meta"):
        cnn = timm.create_model("resnet50", num_classes=0, global_pool="")
    assert whole.params - count_params(cnn) == 1_830_408
    assert round((whole.macs - count_macs(cnn, 224)) / 1e9, 3) == 0.074


@pytest.mark.parametrize("groups", [(0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_size": (9, 7), "kernel_sizes": (5, 3), "pools": (3, 2), "in_chans": 1, "num_classes": 3},
        {"kernels": (8,), "pools": (1,), "kernel_sizes": 1, "depth": 3},
        {"kernel_sizes": (3, 0), "embed_dim": 64},
    ],
    ids=["plain", "odd map", "one stage", "raw"],
)
def test_a_part_is_counted_as_it_is_built(changes, groups):
    arguments = {**TINY, **changes}
    with torch.device("meta"):
        part = HSViT(**arguments, groups=groups).eval()
    shape = HSViTShape.of(arguments)
    size = shape.board(len(groups), "boards") + shape.head()
    assert size.params == count_params(part)
    assert size.weights == weights_size(part)
    if isinstance(arguments["img_size"], int):
        assert size.macs == count_macs(part, arguments["img_size"], part.in_chans)


def test_a_hybrid_part_is_counted_as_it_is_built():
    arguments = {"backbone": "resnet10t", "img_size": 64, "num_groups": 4, "embed_dim": 8, "num_heads": 2}
    with torch.device("meta"):
        part = HSViT(**arguments, groups=(1, 2)).eval()
    shape = HSViTShape.of(arguments)
    size = shape.board(2, "boards") + shape.head()
    assert (size.params, size.macs) == (count_params(part), count_macs(part, 64))


def test_payload_of_the_specification():
    shape = shape_of("hsvit_c4a8_32")
    assert shape.bytes_in(1, "hub") == 8_192
    assert {shape.bytes_in(groups, "boards") for groups in (1, 16)} == {3_072}
    assert (shape.bytes_out(1), shape.bytes_out(3)) == (256, 768)


def test_hub_and_boards_are_the_whole():
    shape = HSViTShape.of(TINY)
    whole = replace(shape.whole(), activations=0)
    for trunk in ("hub", "boards"):
        together = shape.hub(trunk) + shape.board(4, trunk)
        assert replace(together, activations=0) == whole


def test_activations_cover_what_a_part_keeps_alive():
    """The largest single tensors of a forward pass fit in what is counted."""
    model, largest = HSViT(**TINY).eval(), 0

    def see(module, inputs, output):
        nonlocal largest
        largest = max(largest, 4 * sum(each.numel() for each in (*inputs, output)))

    for module in model.modules():
        module.register_forward_hook(see)
    model(torch.zeros(1, 3, 8, 8))
    assert largest <= HSViTShape.of(TINY).whole().activations < 20 * largest
