import math

import pytest
from timm.models.vision_transformer import VisionTransformer

from anyvit.costs.counts import Specification, count_macs, count_params
from anyvit.errors import SettingError, SpreadError
from anyvit.models.layers.indexed import Kept
from anyvit.scaling.spread.boards import Board, Fleet
from anyvit.scaling.spread.class_plan import plan_classes
from anyvit.scaling.spread.classes import deal_classes
from anyvit.scaling.spread.family import Family
from anyvit.scaling.spread.placement import Room, place, place_with_heads
from anyvit.scaling.spread.sizes import Size
from anyvit.scaling.spread.submodel import empty_submodel

MIB = 2**20
BASES = {"small": (12, 6, 21_669_514, 4.60), "base": (12, 12, 85_806_346, 17.56), "large": (24, 16, 303_311_882, 61.55)}
SUBMODELS = {  # heads: parameters and GMACs with 12 blocks, then with 24, two outputs
    1: (661_954, 0.185, 1_261_762, 0.361),
    2: (2_503_554, 0.603, 4_882_818, 1.187),
    3: (5_524_802, 1.253, 10_863_170, 2.478),
    4: (9_725_698, 2.136, 19_202_818, 4.234),
    5: (15_106_242, 3.251, 29_901_762, 6.454),
    6: (21_666_434, 4.598, 42_960_002, 9.139),
    8: (38_325_762, 7.990, 76_154_370, 15.904),
}


def family(depth, heads, classes=10):
    return Family.of_shape(Specification(224, 16, depth, heads, 64, num_classes=classes))


@pytest.mark.parametrize("name", BASES)
def test_sizes_of_the_bases(name):
    depth, heads, params, gmacs = BASES[name]
    size = family(depth, heads).size(heads, 10)
    assert (size.params, round(size.macs / 1e9, 2)) == (params, gmacs)


@pytest.mark.parametrize("heads", SUBMODELS)
def test_sizes_of_submodels(heads):
    found = [family(depth, 16).size(heads, 2) for depth in (12, 24)]
    figures = [figure for size in found for figure in (size.params, round(size.macs / 1e9, 3))]
    assert tuple(figures) == SUBMODELS[heads]


@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"init_values": 1.0}, {"reg_tokens": 3}, {"qkv_bias": False, "global_pool": "avg"}],
    ids=str,
)
def test_sizes_of_any_plain_vit_are_those_of_what_is_built(options):
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=7, **options)
    known = Family.of_model(model)
    kept = Kept(tuple(range(16)), ((0, 2),) * 2, (tuple(range(64)),) * 2)
    built = empty_submodel(model, kept, 4)
    size = known.size(2, 4)
    assert (size.params, size.macs) == (count_params(built), count_macs(built, 16))
    assert (known.width(2), known.bytes_in) == (built.num_features, 3 * 16 * 16)


def test_both_closed_forms_agree():
    shape = Specification(16, 4, 2, 3, 8, num_classes=7)
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=7)
    assert Family.of_shape(shape).size(2, 4) == Family.of_model(model).size(2, 4)


@pytest.mark.parametrize(("groups", "heads"), [(1, 8), (2, 6), (3, 5), (5, 3), (10, 2)])
def test_the_plan_of_vit_base_in_180_mib(groups, heads):
    base = family(12, 12)
    dealt = deal_classes(10, groups)
    room = Room([str(index) for index in range(groups)], [math.inf] * groups, [math.inf] * groups, one_per_device=True)
    each = 180 * MIB / groups

    def need(index, kept):
        return base.size(kept, len(dealt[index]) + 1)

    assert place_with_heads(need, groups, 12, room, total=180 * MIB)[0] == (heads,) * groups
    board = Board("pi", memory=each + 50e6)  # and what its activations take
    assert need(0, heads).weights <= each
    assert plan_classes(base, dealt, Fleet((board,) * groups), 1e9, total=180 * MIB).heads == (heads,) * groups


def unit_room(memory, compute, **options):
    return Room([f"d{index}" for index in range(len(memory))], memory, compute, **options)


def test_ties_go_to_more_memory_then_to_the_first():
    needs = [Size(macs=5, weights=1)] * 3
    assert place(needs, unit_room([10, 20, 20], [math.inf] * 3)).devices == (1, 2, 1)
    assert place([Size(macs=1), Size(macs=2)], unit_room([9, 9], [10, 10])).devices == (1, 0)


def test_latency_fills_the_fastest_free_device_first():
    needs = [Size(macs=macs, weights=1) for macs in (3, 9, 6)]
    room = unit_room([9] * 3, [100] * 3, speed=[1, 3, 2], one_per_device=True, objective="latency")
    assert place(needs, room).devices == (0, 1, 2)
    alone = unit_room([9] * 2, [100] * 2, speed=[10, 1], objective="latency")
    assert place([Size(macs=1)] * 3, alone).devices == (0, 0, 0)


def heads_needed(index, heads):
    return Size(macs=10 * heads + index, weights=10 * heads)


def test_heads_are_removed_of_all_or_of_the_one_that_fails():
    room = unit_room([40, 20], [math.inf] * 2, one_per_device=True)
    assert place_with_heads(heads_needed, 2, 4, room)[0] == (2, 2)
    heads, found = place_with_heads(heads_needed, 2, 4, room, per_model=True)
    assert (heads, found.devices) == ((2, 4), (1, 0))
    assert place_with_heads(heads_needed, 2, 4, room, removed=3)[0] == (1, 1)


def test_one_by_one_removal_ends_as_starting_anew_does():
    """By the book: after every head that is removed all are placed again."""
    room = unit_room([95, 72, 60, 58], [200, 90, 120, 150])
    heads = [5] * 6
    while (found := place([heads_needed(*each) for each in enumerate(heads)], room)).failed is not None:
        heads[found.failed] -= 1
    assert place_with_heads(heads_needed, 6, 5, room, per_model=True) == (tuple(heads), found)


def test_a_total_is_kept():
    room = unit_room([100] * 2, [math.inf] * 2)
    assert place_with_heads(heads_needed, 2, 4, room, total=45)[0] == (2, 2)
    assert place_with_heads(heads_needed, 2, 4, room, total=70, per_model=True)[0] == (3, 4)
    with pytest.raises(SpreadError, match=r"all 2 sub-models together need 20 B of weights and may have 15 B"):
        place_with_heads(heads_needed, 2, 4, room, total=15)


@pytest.mark.parametrize("per_model", [False, True])
def test_what_cannot_fit_names_submodel_need_and_room(per_model):
    room = unit_room([100, 8], [math.inf, 50], one_per_device=True)
    words = r"sub-model 0 finds no device: with one head it needs 10 B and 10 MACs.*has left is 8 B and 50 MACs"
    with pytest.raises(SpreadError, match=words):
        place_with_heads(heads_needed, 2, 4, room, per_model=per_model)
    with pytest.raises(SpreadError, match="sub-model 0 finds no device.*every device has its one sub-model"):
        place_with_heads(heads_needed, 2, 4, unit_room([100], [math.inf], one_per_device=True))


@pytest.mark.parametrize("removed", [-1, 4])
def test_one_head_stays(removed):
    with pytest.raises(SettingError, match=f"from 0 to 3, so that one stays: got {removed}"):
        place_with_heads(heads_needed, 2, 4, unit_room([100], [100]), removed=removed)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"objective": "luck"}, "unknown objective 'luck'"), ({"objective": "latency"}, "needs the speed")],
)
def test_room_that_is_none(options, words):
    with pytest.raises(SettingError, match=words):
        unit_room([1], [1], **options)


def test_the_plan_of_classes():
    base = family(12, 12)
    boards = (
        Board("fast", memory=200e6, speed=2, bandwidth=1e6, latency=0.01),
        Board("slow", memory=60e6, speed=1, bandwidth=1e6, latency=0.01),
    )
    found = plan_classes(base, deal_classes(10, 3), Fleet(boards), 1e10, objective="latency")
    assert len(set(found.heads)) == 1
    width = base.width(found.heads[0])
    for share in found.plan.shares:
        assert share.memory <= share.board.memory
        assert (share.bytes_in, share.bytes_out) == (150_528, 4 * width * len(share.submodels))
        macs = sum(found.sizes[index].macs for index in share.submodels)
        assert share.compute_s == pytest.approx(macs / (1e10 * share.board.speed))
        assert share.network_s == pytest.approx((share.bytes_in + share.bytes_out) / 1e6 + 0.02)
    assert sorted(label for share in found.plan.shares for label in share.groups) == list(range(10))
    slowest = max(share.total_s for share in found.plan.shares)
    assert found.plan.latency_s == pytest.approx(slowest + found.plan.hub_s)


@pytest.mark.parametrize("per_model", [False, True])
def test_a_thousand_boards(per_model):
    boards = tuple(Board(f"board {index}", memory=4e6 + 1e4 * index, speed=1 + index % 3) for index in range(1000))
    found = plan_classes(
        family(12, 12, 1000), deal_classes(1000, 1000), Fleet(boards), 1e9, per_model=per_model, one_per_board=True
    )
    assert len(found.plan.shares) == 1000
    assert all(share.memory <= share.board.memory for share in found.plan.shares)
    assert (min(found.heads), max(found.heads)) == ((1, 2) if per_model else (1, 1))
