"""Collections of garbage while a server answers."""

from __future__ import annotations

import gc

from anyvit.costs.fresh import call_in_new_process
from anyvit.deploy.serving.garbage import spare_what_is_there, what_is_there_spared


def watched(_):
    """How many objects a collection looks at, before and after."""
    before = len(gc.get_objects())
    spare_what_is_there()
    return before, len(gc.get_objects())


def test_what_is_there_is_not_looked_at_again():
    before, after = call_in_new_process("tests.deploy.serving.test_garbage:watched")
    assert after < before / 10


def test_inside_of_the_with_alone():
    with what_is_there_spared():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
