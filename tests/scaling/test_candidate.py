"""Candidates, results and forms are plain data: what JSON gives back is what was put in."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyvit.errors import ModelError, SettingError
from anyvit.models import HydraViT
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.form import Form

NAMES = st.text("abcdefg", min_size=1, max_size=5)
SETTINGS = st.dictionaries(NAMES, st.one_of(st.integers(1, 99), NAMES), max_size=2)
STEPS = st.builds(Step, NAMES, SETTINGS)
CANDIDATES = st.builds(Candidate, st.lists(STEPS, max_size=3).map(tuple), STEPS)
RESULTS = st.builds(
    Result,
    CANDIDATES,
    st.dictionaries(NAMES, st.floats(0, 1e9), max_size=3),
    st.one_of(st.none(), st.floats(0, 1)),
    st.booleans(),
)


def through_json(data):
    return json.loads(json.dumps(data))


@given(CANDIDATES)
def test_candidate_survives_json(candidate):
    assert Candidate.from_json(through_json(candidate.to_json())) == candidate
    assert "/" not in candidate.id


@given(RESULTS)
def test_result_survives_json(result):
    data = through_json(result.to_json())
    assert data["id"] == result.id
    assert Result.from_json(data) == result


@pytest.mark.parametrize(
    ("levers", "backend", "id"),
    [
        ((), Step("torch"), "full-torch"),
        ((Step("heads"),), Step("torch", {"precision": "bfloat16"}), "full-torch-bfloat16"),
        ((Step("heads", {"heads": 3}),), Step("torch"), "heads3-torch"),
        ((Step("heads", {"heads": 3}), Step("tokens", {"method": "evit"})), Step("onnx"), "heads3-evit-onnx"),
    ],
)
def test_id(levers, backend, id):
    assert Candidate(levers, backend).id == id


@pytest.mark.parametrize(
    "form",
    [
        Form("hydravit_tiny_patch2_8", {"num_classes": 4}, (Step("heads"),)),
        Form("test_vit", {"num_classes": 4, "img_size": 32}, (Step("heads", {"heads": 2}),)),
        Form("test_efficientnet", {"num_classes": 4}),
    ],
    ids=lambda form: form.name,
)
def test_form_is_rebuilt_from_json(form):
    again = Form.from_json(through_json(form.to_json()))
    assert again == form
    shapes = [{name: tensor.shape for name, tensor in each.build().state_dict().items()} for each in (form, again)]
    assert shapes[0] == shapes[1]


def test_form_builds_what_the_levers_train():
    form = Form("test_vit", {"num_classes": 4, "img_size": 32}, (Step("heads", {"heads": 2}),))
    model = form.build(drop_path_rate=0.1)
    assert isinstance(model, HydraViT)
    assert model.elastic_heads[0] == 2
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_form_of_what_there_is_not():
    with pytest.raises(
        ModelError, match=r"^unknown model 'hydravit_tiny_patch2_9'. Did you mean hydravit_tiny_patch2_8 or "
    ):
        Form("hydravit_tiny_patch2_9").build()
    with pytest.raises(SettingError, match=r"^unknown lever 'head'"):
        Form("hydravit_tiny_patch2_8", levers=(Step("head"),)).build()
    with pytest.raises(ModelError, match=r"^EfficientNet cannot be made elastic: "):
        Form("test_efficientnet", levers=(Step("heads"),)).build()
