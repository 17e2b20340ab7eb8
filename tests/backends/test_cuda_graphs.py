"""CUDA graphs: refused without a GPU; on one, as exact as eager, a few shapes recorded."""

import pytest
import torch

from anyvit.backends import cuda_graphs
from anyvit.backends.cuda_graphs import CudaGraphs
from anyvit.backends.torch_eager import TorchEager
from anyvit.errors import ModelError, SettingError
from anyvit.protocols import Device
from tests.backends.shapes import IMAGES, vit

BACKEND = CudaGraphs()
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_settings_are_those_of_a_gpu():
    offered = [{}, {"precision": "bfloat16"}, {"precision": "float16"}]
    assert BACKEND.settings(Device("cuda", "GPU", 132, ("sm_90",))) == offered
    assert BACKEND.settings(Device("cpu", "any", 2)) == []
    assert BACKEND.absent(Device("cpu", "any", 2)) is None


@pytest.mark.parametrize(
    ("available", "reason"),
    [
        (False, "CUDA graphs need a CUDA device, and this machine has none"),
        (True, "CUDA graphs need a model on the GPU, and this one is on the cpu"),
    ],
)
def test_refused_where_it_cannot_be(available, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert BACKEND.why_not(vit()) == reason
    with pytest.raises(ModelError, match=f"^{reason}$"):
        BACKEND.prepare(vit(), {}, IMAGES)


def test_int8_is_refused():
    with pytest.raises(
        SettingError, match=r"^the cuda-graphs backend is set by \{\}, a precision of float32, bfloat16, f"
    ):
        BACKEND.prepare(vit(), {"precision": "int8-dynamic"}, IMAGES)


@pytest.mark.gpu
@on_a_gpu
def test_replays_answer_like_eager_and_answers_stay(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    model = vit().cuda()
    for setting in BACKEND.settings(Device("cuda", "GPU", 132)):
        runner, eager = (backend.prepare(model, setting, IMAGES) for backend in (BACKEND, TorchEager()))
        answers = [runner(images) for images in (IMAGES, IMAGES.flip(0), IMAGES[:1], IMAGES[:3])]
        for answer, images in zip(answers, (IMAGES, IMAGES.flip(0), IMAGES[:1], IMAGES[:3]), strict=True):
            torch.testing.assert_close(answer, eager(images), atol=1e-3, rtol=0)
        assert len(runner._recordings) == 2
