"""Design without training among window-attention ViTs of four stages: As-ViT's search for a topology, then its growth.

The latency of these is measured, not predicted: a growth takes some ten steps. Both measurements are taken on crops of
real photographs, or on the images at hand.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import BudgetError, SettingError
from anyvit.models.asvit_topology import Topology
from anyvit.scaling.design.asvit import Search, Space, search
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.by_score import out_of_reach
from anyvit.scaling.design.finding import Designed, Finding
from anyvit.scaling.design.growth import Family, Member, grow
from anyvit.scaling.design.probe import sample_crops
from anyvit.scaling.design.supernet import Band
from anyvit.scaling.design.training_free import Measurement, measure
from anyvit.scaling.form import Form
from anyvit.scaling.trials import quick_images

STEPS = 100
"""Of the search; as published 500, for which there is benchmarks/asvit_search.py."""

DRAWS, IMAGES = 1, 16
MULTIPLE = 32
"""Of the image size: every window split then divides its grid."""

SEARCH, GROWTH = "measured-search", "measured-growth"
"""Under which names a run keeps them."""


def find(brief: Brief) -> Finding:
    """The largest member of the family that fits, and its smaller ones.

    Raises:
        BudgetError: The smallest member is beyond the budget.
        SettingError: The image size is no multiple of 32.
        Interrupted: Ctrl-C. The same call goes on.
    """
    if brief.image_size % MULTIPLE:
        near = max(MULTIPLE, round(brief.image_size / MULTIPLE) * MULTIPLE)
        raise SettingError(
            f"As-ViT takes images of a multiple of {MULTIPLE} px, not {brief.image_size}: choose {near}."
        )
    of = partial(_measurement, brief=brief, images=_images(brief))
    before = brief.recall(SEARCH)
    found = search(
        Space(),
        of,
        steps=STEPS,
        seed=brief.seed,
        known=Search.from_json(before) if before else None,
        kept=lambda state: brief.keep(SEARCH, state.to_json()),
        progress=brief.progress,
    )
    assert found.answer is not None
    family = _grown(brief, found.answer, of)
    ranking = _ranking(brief, family)
    return Finding(
        "parameters, in the family that was grown without training",
        ranking,
        path=[_row(number, member) for number, member in enumerate(family.members)],
        notes=[
            f"topology after {len(found.steps)} steps of search: {found.answer.to_string()}",
            "members of one family are ranked by size: growth keeps its measurements best for each",
        ],
    )


def _grown(brief: Brief, topology: Topology, of: partial[Measurement]) -> Family:
    """Every cost of a member is measured once."""
    known: dict[Topology, float] = {}

    def load(topology: Topology) -> float:
        if topology not in known:
            designed = brief.measured_form(topology.to_string(), _form(topology, brief))
            known[topology] = brief.load(designed.costs)
        return known[topology]

    before = brief.recall(GROWTH)
    return grow(
        topology,
        of,
        Band(load, 0.9, 1.0, "of the budget"),
        known=Family.from_json(before) if before else None,
        kept=lambda family: brief.keep(GROWTH, family.to_json()),
        progress=brief.progress,
    )


def _measurement(topology: Topology, *, brief: Brief, images: Tensor) -> Measurement:
    build = _form(topology, brief).build
    return measure(build, brief.image_size, images, repeats=DRAWS, seed=brief.seed)


def _images(brief: Brief) -> Tensor:
    if brief.dataset is None:
        return sample_crops(IMAGES, brief.image_size, seed=brief.seed)
    batches = quick_images(brief.dataset.splits["train"], Preprocessing(brief.image_size), IMAGES)
    return torch.cat([images for images, _ in batches])


def _form(topology: Topology, brief: Brief) -> Form:
    arguments = {"topology": topology.to_string(), "img_size": brief.image_size, "num_classes": brief.num_classes}
    return Form("asvit", arguments)


def _ranking(brief: Brief, family: Family) -> list[Designed]:
    found = []
    for member in family.members[::-1]:
        form = _form(member.topology, brief)
        designed = brief.measured_form(member.topology.to_string(), form)
        found.append(replace(designed, worth=designed.costs["params"]))
    fitting = [designed for designed in found if designed.fits]
    if not fitting:
        raise BudgetError(out_of_reach(found, brief))
    return [*fitting, *(designed for designed in found if not designed.fits)]


def _row(number: int, member: Member) -> dict[str, object]:
    return {
        "step": number,
        "topology": member.topology.to_string(),
        "load": member.cost,
        "length": member.measurement.length,
        "condition": member.measurement.condition,
    }
