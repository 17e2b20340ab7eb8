import dataclasses

import pytest
import torch

from anyvit.training import execution as execution_module
from anyvit.training.execution import BFLOAT16, FLOAT32, Execution, choose_execution
from anyvit.training.recipes import RECIPES

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU leaves no choice")

RECIPE = dataclasses.replace(RECIPES["scratch-small"], batch_size=8)
WAYS = [(precision, threads) for precision in (FLOAT32, BFLOAT16) for threads in (1, 2)]


class Clock:
    """Stands still but for what a step takes, told by precision and threads."""

    def __init__(self, seconds):
        self.seconds = dict(zip(WAYS, seconds, strict=True))
        self.now = 0.0
        self.steps = 0

    def perf_counter(self):
        return self.now

    def loss(self, model, images, targets, *, step):
        self.steps += 1
        precision = BFLOAT16 if torch.is_autocast_enabled("cpu") else FLOAT32
        self.now += self.seconds[precision, torch.get_num_threads()]
        return model.cls_token.sum(), {}


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ((0.01, 0.02, 0.02, 0.02), Execution(FLOAT32, 1)),
        ((0.02, 0.01, 0.02, 0.0095), Execution(FLOAT32, 2)),
        ((0.02, 0.02, 0.02, 0.005), Execution(BFLOAT16, 2)),
    ],
)
def test_fastest_way_is_chosen(model, seconds, best, two_threads, monkeypatch):
    clock = Clock(seconds)
    monkeypatch.setattr(execution_module, "time", clock)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert choose_execution(model, clock, RECIPE, image_size=8, num_classes=4) == best
    assert torch.get_num_threads() == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_measuring_large_models_ends_soon(model, two_threads, monkeypatch):
    clock = Clock((100, 2, 100, 2))
    monkeypatch.setattr(execution_module, "time", clock)
    choose_execution(model, clock, RECIPE, image_size=8, num_classes=4)
    assert clock.steps == 5  # one thread is not tried


def test_a_recipe_that_leaves_nothing_open_is_obeyed_unmeasured(model):
    recipe = dataclasses.replace(RECIPE, precision="bfloat16", threads=3)
    assert choose_execution(model, None, recipe, image_size=8, num_classes=4) == Execution(BFLOAT16, 3)
