"""Boards as actors of a Ray cluster on this machine."""

from __future__ import annotations

import pytest
import torch

from anyvit.deploy.spread import transports
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.membership import Rhythm
from anyvit.errors import MissingExtraError
from tests.deploy.spread.fleet import logits_of, pictures, place
from tests.deploy.spread.test_coordinator import until


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own, about what it starts
def test_two_actors_one_killed_and_replaced(tmp_path):
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    placed = place(tmp_path / "placed", 2, "boards")
    rhythm = Rhythm(heartbeat=0.2, patience=60.0, longest=0.5)
    with Coordinator.open(placed.folder, transport="ray", deadline=20.0, rhythm=rhythm) as hub:
        until(lambda: not hub.absent(), 240)
        answer = hub.ask(pictures(2)).answer()
        assert (answer.voted, answer.missing) == (4, {})
        torch.testing.assert_close(answer.logits, logits_of(pictures(2)), rtol=0, atol=1e-5)
        ray.kill(hub._membership._members[0].link._actor)  # for good: the hub starts another one
        until(lambda: "board-1" in hub.absent(), 60)
        answer = hub.ask(pictures(2)).answer()
        torch.testing.assert_close(answer.logits, logits_of(pictures(2), (1, 3)), rtol=0, atol=1e-5)
        until(lambda: not hub.absent(), 240)
        assert hub.ask(pictures(1)).answer().voted == 4
    assert not ray.is_initialized()


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name="ray")

    monkeypatch.setattr(transports, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"ray is not installed. .* 'anyvit\[ray\]'"):
        Coordinator.open(place(tmp_path / "placed", 2, "hub").folder, transport="ray")
