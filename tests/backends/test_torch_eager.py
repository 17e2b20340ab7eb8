"""PyTorch eager: probabilities, precisions, weights shared or copied, threads."""

import pytest
import timm
import torch

from anyvit.backends import backend_named, precision
from anyvit.errors import ModelError, SettingError
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


def test_settings_by_device():
    assert BACKEND.settings(Device("cpu", "old", 2, ("avx2",))) == [{}]
    assert BACKEND.settings(Device("cuda", "GPU", 2, ("sm_90",))) == [{}, BFLOAT16, {"precision": "float16"}]
    assert BACKEND.absent(Device("cpu", "old", 2, ("avx2",))) is None


def test_threads_are_set_for_the_call_alone(model, images, monkeypatch):
    before, seen = torch.get_num_threads(), []
    runner = BACKEND.prepare(model, {"threads": before + 1}, images)
    handle = runner.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    runner(images)
    handle.remove()
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_unknown_settings_and_names_are_refused(model, images):
    with pytest.raises(SettingError, match=r"^the torch backend is set by \{\}, a precision of float32, bfloat16, "):
        BACKEND.prepare(model, {"precision": "int8"}, images)
    with pytest.raises(SettingError, match=r"^unknown backend 'torhc'\. Did you mean 'torch'\? Known: "):
        backend_named("torhc")


@pytest.mark.skipif(precision.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_model_that_torchao_cannot_take_is_refused(images):
    """BEiT puts its matrices of queries, keys and values together by itself."""
    beit = timm.create_model("beit_base_patch16_224", img_size=8, patch_size=2, embed_dim=32, depth=1, num_heads=4)
    with pytest.raises(ModelError, match=r"^torchao cannot take Beit: "):
        BACKEND.prepare(beit, {"precision": "int8-dynamic"}, images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_go_to_where_the_weights_are(model, images):
    model.cuda()
    for setting in BACKEND.settings(Device("cuda", "GPU", 2)):
        assert BACKEND.prepare(model, setting, images)(images).device.type == "cuda"
