"""torch.compile: one shape compiled, no others, one model beside the other, and nothing without a compiler."""

import gc
import weakref

import pytest
import torch
from torch._dynamo.utils import counters

from anyvit.backends import torch_compile
from anyvit.backends.torch_compile import CompiledRunner, TorchCompile
from anyvit.backends.torch_eager import TorchEager
from anyvit.errors import ModelError
from anyvit.protocols import Device
from tests.backends.shapes import IMAGES, names, shaped, vit

BACKEND, EAGER = TorchCompile(), TorchEager()
CPU = Device("cpu", "any", 2)


@pytest.fixture
def captured(monkeypatch):
    """Compiles to what was captured, which takes no time, and counts how often."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **options: whole(*given, **options, backend="eager"))
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before


@pytest.mark.slow
def test_compiled_answers_are_those_of_the_model():
    model = vit().eval()
    for setting in BACKEND.settings(CPU):
        compiled, eager = (backend.prepare(model, setting, IMAGES) for backend in (BACKEND, EAGER))
        torch.testing.assert_close(compiled(IMAGES), eager(IMAGES), atol=1e-5 if not setting else 0.01, rtol=0)


def test_one_shape_is_compiled_and_once(captured):
    model = vit(depth=1).eval()
    runner = BACKEND.prepare(model, {}, IMAGES)
    assert captured() == 1
    first = runner(IMAGES)
    with torch.inference_mode():
        made_inside = IMAGES.clone()
    others = (made_inside, IMAGES.clone().requires_grad_(), IMAGES.to(memory_format=torch.channels_last))
    assert all(torch.equal(runner(images), first) for images in others)
    for count in (1, 2, 3, 8):
        images = IMAGES.repeat(2, 1, 1, 1)[:count]
        assert torch.equal(runner(images), EAGER.prepare(model, {}, IMAGES)(images))
    assert captured() == 1


def test_threads_of_the_caller_compile_nothing_anew(captured):
    runner = BACKEND.prepare(vit(depth=1), {"threads": 2}, IMAGES)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runner(IMAGES)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert captured() == 1


def test_many_models_of_one_class_are_compiled_beside_each_other(captured):
    models = [vit(depth=1, mlp_ratio=ratio).eval() for ratio in (1, 2, 3, 4)]
    theirs = torch.compile(models[0])
    theirs(IMAGES)
    with torch._dynamo.config.patch(recompile_limit=2):
        runners = [BACKEND.prepare(model, {}, IMAGES) for model in models]
    for model, runner in zip(models, runners, strict=True):
        torch.testing.assert_close(runner(IMAGES), model(IMAGES).softmax(1))
    theirs(IMAGES)
    assert captured() == len(models) + 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(names()))
def test_what_levers_make_is_captured_whole(shape, captured):
    model = shaped(shape)
    answer = BACKEND.prepare(model, {}, IMAGES)(IMAGES)
    torch.testing.assert_close(answer, model(IMAGES).softmax(1), atol=1e-5, rtol=0)
    assert captured() == 1


def test_a_runner_that_is_dropped_leaves_nothing_behind(captured):
    runner = BACKEND.prepare(vit(depth=1), {}, IMAGES)
    network = weakref.ref(runner._eager.model)
    del runner
    gc.collect()
    assert network() is None


def test_a_model_that_cannot_be_captured_is_refused(captured):
    class Branching(torch.nn.Linear):
        def forward(self, images):
            return super().forward(images if images.sum() > 0 else -images)

    with pytest.raises(ModelError, match=r"^torch\.compile cannot take Branching: "):
        BACKEND.prepare(Branching(8, 5), {}, IMAGES[:, 0, 0])


def test_load_compiles_at_the_first_batch(captured, tmp_path):
    model = vit(depth=1)
    BACKEND.save(BACKEND.prepare(model, {}, IMAGES), tmp_path)
    assert list(tmp_path.iterdir()) == []
    runner = BACKEND.load(model, {}, tmp_path)
    assert isinstance(runner, CompiledRunner)
    assert captured() == 1
    runner(IMAGES[:2])
    runner(IMAGES)
    assert captured() == 2


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            {"which": None},
            "torch.compile needs a C++ compiler, and there is no c-plus: install one, or name yours in CXX",
        ),
        ({"headers": "nowhere"}, "torch.compile needs the headers of Python: install python3-dev"),
    ],
)
def test_without_a_compiler_nothing_is_offered(missing, said, monkeypatch):
    monkeypatch.setenv("CXX", "c-plus")
    monkeypatch.setattr(torch_compile.shutil, "which", lambda name: missing.get("which", name))
    if "headers" in missing:
        monkeypatch.setattr(torch_compile.sysconfig, "get_path", missing.get)
        monkeypatch.setitem(missing, "include", missing["headers"])
    assert BACKEND.settings(CPU) == []
    assert BACKEND.absent(CPU) == BACKEND.why_not(vit()) == said


def test_other_devices():
    assert BACKEND.settings(Device("mps", "M", 8)) == []
    assert BACKEND.absent(Device("mps", "M", 8)) == "torch.compile is for cpu and cuda, not for mps"
