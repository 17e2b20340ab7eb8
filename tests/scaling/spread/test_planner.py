"""Plans: no deal is faster, everyone's memory is kept, and what cannot fit is refused by name and amount."""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import product

import pytest

from anyvit.errors import SettingError, SpreadError
from anyvit.models.hsvit import VARIANTS
from anyvit.scaling.spread.boards import Board, CostTable, Fleet
from anyvit.scaling.spread.plan import COLUMNS, Plan, ranges
from anyvit.scaling.spread.planner import deal, plan_groups
from anyvit.scaling.spread.sizes import HSViTShape

C4A8 = HSViTShape.of(VARIANTS["hsvit_c4a8_32"].arguments)
TINY = HSViTShape.of({"img_size": 8, "kernels": (8, 16), "pools": (2, 1), "num_groups": 4, "embed_dim": 8})
PACE = 1e9


def drawn(random, name="board"):
    return Board(
        name,
        memory=random.choice((1e6, 1e9)),
        speed=random.uniform(0.05, 1),
        bandwidth=random.uniform(1e4, 1e7),
        latency=random.uniform(0, 0.02),
    )


@cache
def seconds(board, shape, count, trunk):
    """The specification's formula, written out."""
    if not count:
        return 0.0
    payload = shape.bytes_in(count, trunk) + shape.bytes_out(count)
    return payload / board.bandwidth + 2 * board.latency + shape.board(count, trunk).macs / (PACE * board.speed)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("trunk", ["hub", "boards"])
def test_no_deal_is_faster(seed, trunk):
    chance = random.Random(seed)
    fleet = Fleet(tuple(drawn(chance, f"b{place}") for place in range(4)))
    plan = plan_groups(TINY, fleet, PACE, trunk=trunk)
    best = min(
        max(seconds(board, TINY, count, trunk) for board, count in zip(fleet.boards, counts, strict=True))
        for counts in product(range(5), repeat=4)
        if sum(counts) == 4
    )
    assert plan.latency_s == pytest.approx(best + TINY.hub(trunk).macs / PACE)


def test_no_deal_of_measured_times_within_room_is_faster():
    for seed in range(30):
        chance = random.Random(seed)
        room = [chance.randint(0, 4) for _ in range(4)]
        times = [[0.0, *sorted(chance.random() for _ in range(4))] for _ in room]
        groups = chance.randint(0, sum(room))
        counts = deal(groups, room, lambda place, count, times=times: times[place][count])
        assert sum(counts) == groups
        every = (each for each in product(*(range(most + 1) for most in room)) if sum(each) == groups)
        slowest = [max(times[place][count] for place, count in enumerate(each)) for each in (counts, *every)]
        assert slowest[0] == min(slowest)


def test_every_group_once_bytes_and_seconds_by_the_formulas():
    fleet = Fleet(tuple(drawn(random.Random(seed), f"b{seed}") for seed in range(5)), Board("hub", speed=2))
    plan = plan_groups(C4A8, fleet, PACE, trunk="hub")
    assert sorted(group for share in plan.shares for group in share.groups) == list(range(16))
    assert plan.bytes_on_wire == 16 * (8192 + 256)
    for share in plan.shares:
        assert share.memory <= share.board.memory
        assert share.total_s == pytest.approx(seconds(share.board, C4A8, len(share.groups), "hub"))
    assert plan.hub_s == C4A8.hub("hub").macs / (2 * PACE)
    assert plan.latency_s == plan.hub_s + max(share.total_s for share in plan.shares)


def test_the_trunk_goes_where_the_answer_comes_sooner():
    slow_links = Fleet(tuple(Board(f"b{place}", bandwidth=1e4) for place in range(2)))
    slow_boards = Fleet(tuple(Board(f"b{place}", speed=0.01) for place in range(2)))
    for fleet, wanted in ((slow_links, "boards"), (slow_boards, "hub")):
        auto, hub, boards = (plan_groups(C4A8, fleet, PACE, trunk=trunk) for trunk in ("auto", "hub", "boards"))
        assert auto.trunk == wanted
        assert auto.latency_s == min(hub.latency_s, boards.latency_s)


def test_bottleneck_and_throughput():
    fleet = Fleet((Board("near"), Board("far", speed=0.01, bandwidth=1e9, latency=1.0)), Board("hub", speed=100))
    only_far = Fleet((fleet.boards[1],), fleet.hub)
    assert [share.board.name for share in plan_groups(C4A8, fleet, PACE, trunk="hub").shares] == ["near"]
    plan = plan_groups(C4A8, only_far, PACE, trunk="hub")
    assert plan.bottleneck == "far"
    assert plan.throughput == pytest.approx(1 / plan.shares[0].compute_s)
    assert plan_groups(C4A8, only_far, 1e15, trunk="hub").bottleneck == "link to far"
    assert plan_groups(C4A8, Fleet((Board("a"),), Board("hub", speed=1e-3)), PACE, trunk="hub").bottleneck == "hub"


def test_a_cost_table_counts_before_speed():
    table = CostTable("hsvit_c4a8_32", C4A8.whole().macs, {"hub": {1: 0.1, 16: 1.6}}, {"hub": 0.5, "boards": 0.0}, "")
    boards = (Board("a", speed=0.001, cost_table=table), Board("b", cost_table=table))
    fleet = Fleet(boards, Board("hub", cost_table=table))
    plan = plan_groups(C4A8, fleet, PACE, trunk="hub")
    assert [len(share.groups) for share in plan.shares] == [8, 8]
    assert plan.latency_s == pytest.approx(0.5 + 0.8)
    with pytest.raises(SettingError, match=r"a: its cost table is of hsvit_c4a8_32, of 638 M MACs, and this model has"):
        plan_groups(TINY, fleet, PACE)


def test_a_thousand_boards():
    chance = random.Random(0)
    fleet = Fleet(tuple(drawn(chance, f"b{place}") for place in range(1000)))
    for shape in (C4A8, HSViTShape.of({**VARIANTS["hsvit_c4a8_32"].arguments, "num_groups": 512})):
        plan = plan_groups(shape, fleet, PACE)
        assert sum(len(share.groups) for share in plan.shares) == shape.num_groups
        assert len(plan.shares) <= 1000


def test_what_cannot_fit_is_refused_by_name_and_amount():
    group = C4A8.board(1, "hub").memory
    boards = tuple(Board(f"pi-{place}", memory=3 * group + 1000 * place) for place in range(8))
    with pytest.raises(SpreadError) as refusal:
        plan_groups(C4A8, Fleet(boards[:2]), PACE, trunk="hub")
    words = str(refusal.value)
    assert "10 of 16 groups find no room: pi-0 (1.97 MB) holds 3 and lacks 656 kB for 4; pi-1 (1.97 MB)" in words
    assert "At the least, give pi-1 6.56 MB more, or add boards." in words
    enough = Fleet((boards[0], Board("pi-1", memory=13 * group)))
    assert len(plan_groups(C4A8, enough, PACE, trunk="hub").shares) == 2
    with pytest.raises(SpreadError, match=r"pi-4 .*; and 2 more boards"):
        plan_groups(C4A8, Fleet(tuple(Board(f"pi-{n}", memory=group) for n in range(7))), PACE, trunk="hub")
    with pytest.raises(SpreadError, match=r"on the hub, 10 of 16 .* on the boards, 16 of 16"):
        plan_groups(C4A8, Fleet(boards[:2]), PACE)


def test_a_hub_that_is_too_small():
    fleet = Fleet((Board("a"),), Board("hub", memory=1e6))
    with pytest.raises(SpreadError, match=r"with the trunk on the hub, hub needs 19.4 MB and gives 1 MB: 18.4 MB too"):
        plan_groups(C4A8, fleet, PACE, trunk="hub")
    assert plan_groups(C4A8, fleet, PACE).trunk == "boards"


def test_settings_that_are_refused():
    with pytest.raises(SettingError, match="unknown trunk 'hubs'. Did you mean 'hub'"):
        plan_groups(C4A8, Fleet((Board("a"),)), PACE, trunk="hubs")
    with pytest.raises(SettingError, match="without attention groups"):
        plan_groups(HSViTShape.of({"num_groups": 0}), Fleet((Board("a"),)), PACE)


def test_a_plan_survives_json_and_reads_as_a_table():
    fleet = Fleet((Board("a", "10.0.0.1:7002", memory=1e9, bandwidth=1.25e6), Board("b")))
    plan = plan_groups(C4A8, fleet, PACE, trunk="hub")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()), parse_constant=pytest.fail)) == plan
    first, second = plan.table()
    assert len(first) == len(second) == len(COLUMNS)
    assert first[:2] == ("a", "10.0.0.1:7002")
    assert first[3].endswith(" of 1 GB")
    assert " of " not in second[3]


@pytest.mark.parametrize(
    ("numbers", "words"), [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((0, 1, 4, 6, 7), "0-1, 4, 6-7")]
)
def test_ranges(numbers, words):
    assert ranges(numbers) == words
