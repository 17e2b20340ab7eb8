"""What holds for every backend. A new one is tested by being registered."""

import copy
import json

import pytest
import torch
from torch import nn

from anyvit.backends import BACKENDS, backend_named
from anyvit.errors import SettingError
from anyvit.models import create_model
from anyvit.protocols import UNCHANGED, Device, Needs

DEVICE = Device("cpu", "any", 2)
OLD = Device("cpu", "old", 2, ("avx2",))
IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 0.03, "int8-dynamic": 0.05, "int8-static": 0.05}
backends = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
SLOW = {"torch-compile": [pytest.mark.slow]}  # each runner of theirs takes many seconds to build
usable = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(backend, id=backend.name, marks=SLOW.get(backend.name, []))
        for backend in BACKENDS
        if backend.settings(DEVICE)
    ],
)


@pytest.fixture(autouse=True, scope="module")
def captured_only():
    """What torch.compile has captured runs as it is: to make code of it takes half a minute each time."""
    whole = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda *given, **options: whole(*given, **options, backend="eager"))
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """An elastic model that is sure of its answers: so what a precision rounds is seen."""
    torch.manual_seed(0)
    model = create_model("hydravit_tiny_patch2_8", num_classes=5).eval()
    nn.init.normal_(model.head.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def narrow(model):
    """A subnetwork as views of the model, and as a copy."""
    return model.subnetwork(2), model.extract(2)


@pytest.fixture(scope="module")
def runners(model):
    """`runners(backend)`: a runner for each of its settings, built once."""
    built = {}

    def runners(backend):
        if backend.name not in built:
            built[backend.name] = [(setting, prepare(backend, model, setting)) for setting in settings(backend)]
        return built[backend.name]

    return runners


def settings(backend) -> list:
    """As a bundle keeps them."""
    return json.loads(json.dumps([dict(setting) for setting in backend.settings(DEVICE)]))


def prepare(backend, model, setting):
    images = {"images": IMAGES} if backend.needs(setting) is Needs.IMAGES else {}
    return backend.prepare(model, setting, IMAGES[:4], **images)


@backends
def test_words_and_registry(backend, model):
    assert backend_named(backend.name) is backend
    offered = [dict(setting) for setting in backend.settings(DEVICE)]
    assert offered == settings(backend)
    assert offered[:1] == ([] if backend.why_not(model) else [UNCHANGED])
    assert all(setting.get("precision", "float32") in TOLERANCES for setting in offered)
    assert all(backend.needs(setting) in (Needs.NOTHING, Needs.IMAGES) for setting in offered)
    assert backend.needs(UNCHANGED) is Needs.NOTHING


@usable
def test_an_old_processor_is_offered_float32_alone(backend):
    assert list(backend.settings(OLD)) == [UNCHANGED]
    assert backend.absent(OLD) is None or "int8" not in backend.absent(OLD)


@backends
def test_what_is_absent_is_said_with_the_way_to_get_it(backend):
    absent = backend.absent(DEVICE)
    assert absent is None or ("install" in absent and "\n" not in absent)


@usable
def test_answers_are_probabilities_close_to_the_models(backend, model, runners):
    """For as many images as the runner was made for, for fewer and for more."""
    with torch.inference_mode():
        expected = model(IMAGES).softmax(1)
    assert expected.std() > 0.1
    for setting, runner in runners(backend):
        for count in (4, 1, 7):
            given = IMAGES[:count].clone()
            answer = runner(given)
            assert answer.dtype == torch.float32
            assert answer.device.type == "cpu"
            assert not answer.requires_grad
            assert torch.equal(given, IMAGES[:count])
            torch.testing.assert_close(answer.sum(1), torch.ones(count))
            tolerance = TOLERANCES[setting.get("precision", "float32")]
            torch.testing.assert_close(answer, expected[:count], atol=tolerance, rtol=0)


@usable
def test_an_answer_outlives_the_next_call(backend, runners):
    for _, runner in runners(backend):
        answer = runner(IMAGES[:4])
        before = answer.clone()
        runner(-IMAGES[:4])
        assert torch.equal(answer, before)


@usable
def test_runners_take_subnetworks_that_are_views(backend, narrow):
    """What is calibrated is made of the same graph."""
    for setting in settings(backend):
        if backend.needs(setting) is Needs.NOTHING:
            view, own = (prepare(backend, model, setting)(IMAGES[:4]) for model in narrow)
            torch.testing.assert_close(view, own, atol=1e-5, rtol=0)


@usable
def test_the_model_given_is_untouched(backend, model, runners):
    """One in training mode is answered for in evaluation mode. What is calibrated is made of the same graph."""
    training = copy.deepcopy(model).train()
    before = copy.deepcopy(training.state_dict())
    runners(backend)
    for setting in settings(backend):
        if backend.needs(setting) is Needs.NOTHING:
            prepare(backend, training, setting)(IMAGES[:4])
    for given, mode in ((training, True), (model, False)):
        assert all(module.training is mode for module in given.modules())
        assert {parameter.dtype for parameter in given.parameters()} == {torch.float32}
        torch.testing.assert_close(given.state_dict(), before, rtol=0, atol=0)


@usable
def test_threads_are_a_setting(backend, model, runners):
    _, exact = runners(backend)[0]
    answer = prepare(backend, model, {"threads": 2})(IMAGES[:4])
    torch.testing.assert_close(answer, exact(IMAGES[:4]), atol=1e-5, rtol=0)


@usable
def test_a_loaded_runner_answers_alike(backend, model, runners, tmp_path):
    for index, (setting, runner) in enumerate(runners(backend)):
        folder = tmp_path / str(index)
        folder.mkdir()
        backend.save(runner, folder)
        loaded = backend.load(model, setting, folder)
        for count in (4, 7):
            assert torch.equal(loaded(IMAGES[:count]), runner(IMAGES[:count]))


@usable
def test_unknown_setting_is_refused(backend, model):
    with pytest.raises(SettingError, match=backend.name):
        backend.prepare(model, {"precision": "no such"}, IMAGES)
    with pytest.raises(SettingError, match=backend.name):
        backend.prepare(model, {"no such": 1}, IMAGES)
