"""Candidates are the legal combinations, in the order they compose in; a workshop builds each once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from anyvit.backends import BACKENDS
from anyvit.errors import ModelError
from anyvit.models import create_model
from anyvit.protocols import UNCHANGED, Device, Stage
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.shrink import LEVERS, BaseLever, lever_named
from anyvit.scaling.space import Space
from anyvit.scaling.workshop import Workshop, prepare, reshape

DEVICE = Device("cpu", "any", 2, features=("avx2",))


@dataclass
class FakeLever(BaseLever):
    name: str
    stage: Stage
    offered: tuple = (UNCHANGED, {"by": 2})
    against: dict = field(default_factory=dict)
    refusal: str | None = None

    def why_not(self, model):
        return self.refusal

    def settings(self, model):
        return self.offered

    def conflicts(self):
        return self.against


@dataclass
class FakeBackend:
    name: str
    refusal: str | None = None

    def why_not(self, model):
        return self.refusal

    def settings(self, device):
        return [UNCHANGED, {"precision": "half"}]


def test_levers_compose_in_the_order_of_their_stages():
    late, early = FakeLever("late", Stage.TOKENS), FakeLever("early", Stage.SHAPE)
    found = list(Space.of(nn.Identity(), [late, early], [FakeBackend("any")], DEVICE))
    assert all([step.name for step in candidate.levers] == ["early", "late"] for candidate in found)
    assert [candidate.id for candidate in found] == [
        *("full-any", "full-any-half", "by2-any", "by2-any-half"),
        *("by2-any", "by2-any-half", "by2-by2-any", "by2-by2-any-half"),
    ]


def test_without_levers_the_full_model_is_the_one_shape():
    found = list(Space.of(nn.Identity(), [], [FakeBackend("one"), FakeBackend("two")], DEVICE))
    assert [candidate.id for candidate in found] == ["full-one", "full-one-half", "full-two", "full-two-half"]


def test_levers_in_conflict_are_not_combined():
    heads = FakeLever("heads", Stage.SHAPE, offered=(UNCHANGED, {"heads": 2}))
    tokens = FakeLever("tokens", Stage.TOKENS, offered=(UNCHANGED, {"keep": 7}), against={"heads": "never together"})
    for levers in ([heads, tokens], [tokens, heads]):
        shapes = {candidate.id for candidate in list(Space.of(nn.Identity(), levers, [FakeBackend("any")], DEVICE))}
        assert shapes == {f"{name}-any{half}" for name in ("full", "heads2", "keep7") for half in ("", "-half")}


def test_refusals_give_their_reasons():
    with pytest.raises(ModelError, match=r"^lever 'tokens' does not apply: it has windows$"):
        list(Space.of(nn.Identity(), [FakeLever("tokens", Stage.TOKENS, refusal="it has windows")], BACKENDS, DEVICE))
    backends = [FakeBackend("one", "no such layer"), FakeBackend("two", "too large")]
    with pytest.raises(ModelError, match=r"^no backend runs this model: one: no such layer; two: too large$"):
        list(Space.of(nn.Identity(), [], backends, DEVICE))
    (first, _) = list(Space.of(nn.Identity(), [], [FakeBackend("one", "no such layer"), FakeBackend("two")], DEVICE))
    assert first.backend.name == "two"


def test_ids_are_unique_within_a_bundle():
    model = create_model("hydravit_small_patch2_8")
    levers = [lever for lever in LEVERS if not lever.why_not(model)]
    ids = [candidate.id for candidate in list(Space.of(model, levers, BACKENDS, Device("cpu", "any", 2)))]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "full-torch"


def test_prepare_answers_as_the_reshaped_model():
    model, images = create_model("hydravit_tiny_patch2_8", num_classes=4).eval(), torch.randn(2, 3, 8, 8)
    for candidate in list(Space.of(model, [lever_named("heads")], BACKENDS[:1], DEVICE)):
        expected = reshape(model, candidate)(images).softmax(1)
        torch.testing.assert_close(prepare(model, candidate, images)(images), expected)


def test_a_place_in_each_choice_is_a_candidate():
    levers = [FakeLever("a", Stage.SHAPE, against={"b": "both cut"}), FakeLever("b", Stage.TOKENS)]
    space = Space.of(nn.Identity(), levers, [FakeBackend("any")], DEVICE)
    assert space.size == 8
    assert space.at((0, 1, 1)) in list(space)
    assert space.at((1, 1, 0)) is None
    assert len(list(space)) == 6


def test_the_ends_are_unshrunk_and_smallest_or_each_lever_alone_where_they_conflict():
    a, b = FakeLever("a", Stage.SHAPE), FakeLever("b", Stage.TOKENS)
    space = Space.of(nn.Identity(), [a, b], [FakeBackend("any")], DEVICE)
    assert [len(candidate.active) for candidate in space.ends()] == [0, 0, 2, 2]
    space = Space.of(nn.Identity(), [FakeLever("a", Stage.SHAPE, against={"b": "no"}), b], [FakeBackend("any")], DEVICE)
    assert [len(candidate.active) for candidate in space.ends()] == [0, 0, 1, 1, 1, 1]


def test_threads_are_part_of_the_setting_where_there_are_several():
    space = Space.of(nn.Identity(), [], [FakeBackend("any")], DEVICE, threads=2)
    assert [candidate.id for candidate in space] == ["full-any-threads2", "full-any-half-threads2"]


def test_a_workshop_builds_a_shape_and_a_runner_once():
    model, images = create_model("hydravit_tiny_patch2_8", num_classes=4).eval(), torch.randn(2, 3, 8, 8)
    workshop = Workshop(model, images)
    small = Candidate((Step("heads", {"heads": 1}),), Step("torch"))
    exact, rounded = small, Candidate(small.levers, Step("torch", {"precision": "bfloat16"}))
    assert workshop.shape(exact) is workshop.shape(rounded)
    runner = workshop.runner(exact)
    assert workshop.runner(exact) is runner
    workshop.release(keep=[exact.id])
    assert workshop.runner(exact) is runner
    workshop.release()
    assert workshop.runner(exact) is not runner
    torch.testing.assert_close(workshop.runner(exact)(images), runner(images))
