"""Candidates measured beside a reference: once each, in its first times, and failures noted."""

from __future__ import annotations

import pytest
import torch

from anyvit.models import create_model
from anyvit.protocols import Needs
from anyvit.scaling import trials as module
from anyvit.scaling import workshop as building
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.trials import Trials
from anyvit.scaling.workshop import Workshop
from tests.conftest import HASTY

FULL, SMALL = (Candidate((Step("heads", setting),), Step("torch")) for setting in ({}, {"heads": 1}))
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trials():
    model = create_model("hydravit_tiny_patch2_8", num_classes=4).eval()
    labels = model(IMAGES).argmax(1)
    workshop = Workshop(model, Conditions(8).example())
    return Trials(workshop, FULL, Conditions(8), [(IMAGES[:4], labels[:4]), (IMAGES[4:], labels[4:])], protocol=HASTY)


def test_each_is_measured_once_and_remembered(trials):
    kept = []
    trials.keep = lambda results: kept.append([result.id for result in results])
    (small,) = trials.measure([SMALL])
    assert trials.results[FULL.id].accuracy == 1.0
    assert trials.measure([SMALL, FULL]) == [small, trials.results[FULL.id]]
    assert kept == [[FULL.id, SMALL.id]]


def test_times_are_told_in_the_first_ones_of_the_reference(trials):
    trials.measure([FULL])
    first = trials.results[FULL.id]
    slowed = {**first.costs, "latency": 100 * first.costs["latency"]}
    trials.results[FULL.id] = type(first)(first.candidate, slowed, first.accuracy)
    (small,) = trials.measure([SMALL])
    assert 10 < small.costs["latency"] / first.costs["latency"] < 1000
    assert small.costs["params"] < first.costs["params"]


class Broken:
    """A runtime that refuses, or answers with no numbers."""

    name = "broken"

    def __init__(self, answer=None):
        self.answer = answer

    def needs(self, setting):
        return Needs.NOTHING

    def prepare(self, model, setting, example, *, images=None):
        if self.answer is None:
            raise RuntimeError("no such operator\nand many more lines")
        return lambda images: torch.full((len(images), 4), self.answer)

    def save(self, runner, folder):
        (folder / "own").write_bytes(b"1234567")


@pytest.mark.parametrize(
    ("answer", "why"),
    [(None, "cannot be built: no such operator"), (float("nan"), "some of its probabilities are not numbers")],
)
def test_what_fails_is_noted_and_the_others_are_measured(trials, monkeypatch, answer, why):
    for place in (module, building):
        known = place.backend_named
        monkeypatch.setattr(
            place, "backend_named", lambda name, known=known: Broken(answer) if name == "broken" else known(name)
        )
    broken = Candidate(FULL.levers, Step("broken"))
    assert [result.id for result in trials.measure([broken, SMALL])] == [SMALL.id]
    result, reason = trials.failures[broken.id]
    assert reason == why
    assert result.costs["params"] > 0
    assert trials.measure([broken]) == []


def test_the_size_is_that_of_the_runtimes_own_file(trials, monkeypatch):
    monkeypatch.setattr(module, "backend_named", lambda name: Broken(0.25))
    assert trials.measure([FULL])[0].costs["size"] == 7


def test_together_all_are_timed_in_turn_and_keep_their_accuracy(trials):
    trials.measure([SMALL])
    full, small = trials.together([FULL, SMALL])
    assert (full.accuracy, small.accuracy) == (1.0, trials.results[SMALL.id].accuracy)
    assert full.costs["macs"] > small.costs["macs"]
