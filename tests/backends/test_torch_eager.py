"""PyTorch eager: probabilities, two precisions, weights shared or copied."""

import pytest
import torch

from anyvit.backends import backend_named
from anyvit.errors import SettingError
from anyvit.models import create_model
from anyvit.protocols import Device

BACKEND = backend_named("torch")
BFLOAT16 = {"precision": "bfloat16"}


@pytest.fixture
def model():
    return create_model("hydravit_tiny_patch2_8", num_classes=5)


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_probabilities_of_the_model_in_evaluation_mode(model, images):
    runner = BACKEND.prepare(model, {}, images)
    assert torch.equal(runner(images), model.eval()(images).softmax(1))
    assert not runner(images).requires_grad


def test_float32_shares_the_weights_and_bfloat16_does_not(model, images):
    exact, rounded = BACKEND.prepare(model, {}, images), BACKEND.prepare(model, BFLOAT16, images)
    before = rounded(images)
    assert before.dtype == torch.float32
    torch.testing.assert_close(before, exact(images), atol=0.02, rtol=0)
    assert not torch.equal(before, exact(images))
    with torch.no_grad():
        model.head.bias[0] += 100
    assert exact(images)[:, 0].min() > 0.99
    assert torch.equal(rounded(images), before)
    assert model.head.weight.dtype == torch.float32


def test_a_loaded_runner_answers_alike(model, images, tmp_path):
    for setting in ({}, BFLOAT16):
        runner = BACKEND.prepare(model, setting, images)
        BACKEND.save(runner, tmp_path)
        assert torch.equal(BACKEND.load(model, setting, tmp_path)(images), runner(images))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "offered"),
    [
        (Device("cpu", "fast", 2, ("avx2", "avx512_bf16")), [{}, BFLOAT16]),
        (Device("cpu", "fast", 2, ("amx_bf16",)), [{}, BFLOAT16]),
        (Device("cpu", "fast", 2, ("asimd", "bf16")), [{}, BFLOAT16]),
        (Device("cpu", "old", 2, ("avx2",)), [{}]),
        (Device("cpu", "silent", 2), [{}, BFLOAT16]),
        (Device("cuda", "GPU", 2, ("avx2",)), [{}, BFLOAT16]),
    ],
)
def test_bfloat16_is_offered_where_it_may_gain(device, offered):
    assert BACKEND.settings(device) == offered


def test_unknown_settings_and_names_are_refused(model, images):
    with pytest.raises(SettingError, match=r"^the torch backend is set by \{\} or \{'precision': 'bfloat16'\}: got "):
        BACKEND.prepare(model, {"precision": "int8"}, images)
    with pytest.raises(SettingError, match=r"^unknown backend 'torhc'\. Did you mean 'torch'\? Known: "):
        backend_named("torhc")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_go_to_where_the_weights_are(model, images):
    model.cuda()
    for setting in BACKEND.settings(Device("cuda", "GPU", 2)):
        assert BACKEND.prepare(model, setting, images)(images).device.type == "cuda"
