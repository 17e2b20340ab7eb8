"""What holds for every backend. A new one is tested by being registered."""

import copy
import json

import pytest
import torch

from anyvit.backends import BACKENDS, backend_named
from anyvit.errors import SettingError
from anyvit.protocols import Device, Needs

DEVICE = Device("cpu", "any", 2)
backends = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def settings(backend) -> list:
    """As a bundle keeps them."""
    return json.loads(json.dumps([dict(setting) for setting in backend.settings(DEVICE)]))


def given(backend, setting: dict, images: torch.Tensor) -> dict:
    return {"images": images} if backend.needs(setting) is Needs.IMAGES else {}


@backends
def test_words_and_registry(backend, model):
    assert backend_named(backend.name) is backend
    assert backend.why_not(model) is None
    offered = [dict(setting) for setting in backend.settings(DEVICE)]
    assert offered == settings(backend)
    assert offered
    assert all(backend.needs(setting) in Needs for setting in offered)


@backends
def test_runners_answer_with_probabilities_close_to_the_models(backend, model, images):
    expected = model(images).softmax(1)
    for setting in settings(backend):
        answer = backend.prepare(model, setting, images, **given(backend, setting, images))(images)
        assert answer.dtype == torch.float32
        assert not answer.requires_grad
        torch.testing.assert_close(answer.sum(1), torch.ones(4))
        torch.testing.assert_close(answer, expected, atol=0.05, rtol=0)


@backends
def test_the_most_exact_setting_is_exact(backend, model, images):
    setting = settings(backend)[0]
    answer = backend.prepare(model, setting, images, **given(backend, setting, images))(images)
    torch.testing.assert_close(answer, model(images).softmax(1), atol=1e-5, rtol=0)


@backends
def test_runners_take_subnetworks_that_are_views(backend, model, images):
    for setting in settings(backend):
        runner = backend.prepare(model.subnetwork(3), setting, images, **given(backend, setting, images))
        other = backend.prepare(model.extract(3), setting, images, **given(backend, setting, images))
        torch.testing.assert_close(runner(images), other(images), atol=1e-5, rtol=0)


@backends
def test_the_model_given_is_untouched(backend, model, images):
    model.train()
    before = copy.deepcopy(model.state_dict())
    for setting in settings(backend):
        backend.prepare(model, setting, images, **given(backend, setting, images))(images)
    assert model.training
    assert all(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@backends
def test_a_loaded_runner_answers_alike(backend, model, images, tmp_path):
    for index, setting in enumerate(settings(backend)):
        folder = tmp_path / str(index)
        folder.mkdir()
        runner = backend.prepare(model, setting, images, **given(backend, setting, images))
        backend.save(runner, folder)
        assert torch.equal(backend.load(model, setting, folder)(images), runner(images))


@backends
def test_unknown_setting_is_refused(backend, model, images):
    with pytest.raises(SettingError, match=backend.name):
        backend.prepare(model, {"precision": "no such"}, images)
