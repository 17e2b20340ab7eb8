"""Spread over processes, an HSViT computes what it computes in one. The checks themselves are in learning.py."""

import pytest
from torch import nn

from anyvit.errors import SettingError
from anyvit.scaling.spread.mesh import Layout, deal
from anyvit.scaling.spread.parallel import why_not_spread
from tests.golden.vectors import root
from tests.scaling.spread import learning

GOLDEN = sorted((root() / "hsvit").glob("*.safetensors"))


@pytest.mark.slow
def test_two_processes_learn_like_one(processes):
    processes.run(2, learning.steps)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 4])
def test_processes_learn_like_one(processes, size):
    """Three share four groups unevenly; four also make two rows of two."""
    processes.run(size, learning.steps)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_golden_vectors_in_every_placement(processes, size):
    assert GOLDEN
    processes.run(size, learning.golden, *GOLDEN)


@pytest.mark.slow
def test_groups_vote_alike_and_drop_apart(processes):
    processes.run(2, learning.votes)
    processes.run(2, learning.tokens_apart)


@pytest.mark.parametrize("size", [2, 3])
def test_payload_is_that_of_the_formulas(processes, size):
    processes.run(size, learning.payload)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_state_is_gathered_and_cut(processes, size):
    processes.run(size, learning.states)


@pytest.mark.parametrize(("groups", "processes", "dealt"), [(4, 1, "0123"), (4, 2, "01 23"), (4, 3, "0 1 23")])
def test_groups_are_dealt_in_order(groups, processes, dealt):
    assert [list(held) for held in deal(groups, processes)] == [[int(each) for each in held] for held in dealt.split()]


def test_more_processes_than_groups_are_refused():
    with pytest.raises(SettingError, match="4 groups cannot be spread over 5 processes: start at most 4"):
        deal(4, 5)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("groups", Layout()),
        ("groups:hub", Layout("hub")),
        ("groups,data=2", Layout("boards", 2)),
        ("groups:hub, data=3", Layout("hub", 3)),
    ],
)
def test_layout_is_read(text, layout):
    assert Layout.parse(text) == layout


@pytest.mark.parametrize("text", ["", "group", "groups:trunk", "groups,data=0", "groups,rows=2"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(SettingError, match=r"cannot read spread .* Write groups, groups:hub"):
        Layout.parse(text)


def test_processes_form_whole_rows():
    assert Layout(rows=2).columns(6) == 3
    with pytest.raises(SettingError, match=r"5 processes cannot form 2 equal rows \(data=2\)"):
        Layout(rows=2).columns(5)


def test_only_groups_can_be_spread():
    assert "a Linear has none" in why_not_spread(nn.Linear(2, 2))
    assert "num_groups 0" in why_not_spread(learning.tiny(num_groups=0))
    assert why_not_spread(learning.tiny()) is None
