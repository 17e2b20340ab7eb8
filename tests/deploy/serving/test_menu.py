"""What a server offers."""

from __future__ import annotations

from dataclasses import replace

from anyvit.deploy.serving.menu import Menu
from tests.deploy.tiny import RESULTS, write_tiny


def bundle_of(tmp_path, *results):
    """A bundle with these candidates."""
    return write_tiny(tmp_path / "tiny", candidates=[result.to_json() for result in results]).folder


def slower(result, latency):
    return replace(result, costs={**result.costs, "latency": latency})


def test_who_is_beaten_by_far_is_withheld_and_who_may_be_better_in_batches_is_not(tmp_path):
    full, halved, three, two = RESULTS
    menu = Menu.open(bundle_of(tmp_path, full, slower(halved, 0.0059), three, slower(two, 0.005)))
    assert [result.id for result in menu.results] == [full.id, halved.id, three.id]
    assert menu.withheld == {two.id: "another one is as accurate, and 1.5 times as fast or more"}


def test_those_that_no_other_beats_are_held_first(tmp_path):
    full, halved, three, two = RESULTS
    menu = Menu.open(bundle_of(tmp_path, full, slower(halved, 0.0059), three, two))
    assert menu.by_need() == [full.id, two.id, three.id, halved.id]
