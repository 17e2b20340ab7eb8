"""Precisions of PyTorch: which are offered, what is shared, and that every lever's model converts."""

import sys

import pytest
import torch
from torch import nn

from anyvit.backends import precision
from anyvit.backends.precision import BFLOAT16, FLOAT16, INT8_DYNAMIC
from anyvit.errors import MissingExtraError, SettingError
from anyvit.protocols import Device
from tests.backends.shapes import IMAGES, names, shaped, vit

needs_torchao = pytest.mark.skipif(precision.find_spec("torchao") is None, reason="torchao is not installed")


@pytest.mark.parametrize(
    ("device", "floats", "int8"),
    [
        (Device("cpu", "fast", 2, ("avx2", "avx512_bf16", "avx512_vnni")), [{}, BFLOAT16], [INT8_DYNAMIC]),
        (Device("cpu", "fast", 2, ("amx_bf16",)), [{}, BFLOAT16], []),
        (Device("cpu", "fast", 2, ("asimd", "bf16", "i8mm")), [{}, BFLOAT16], [INT8_DYNAMIC]),
        (Device("cpu", "old", 2, ("avx2",)), [{}], []),
        (Device("cpu", "silent", 2), [{}, BFLOAT16], [INT8_DYNAMIC]),
        (Device("cuda", "GPU", 2, ("sm_90",)), [{}, BFLOAT16, FLOAT16], []),
    ],
)
def test_a_precision_is_offered_where_it_may_gain(device, floats, int8, monkeypatch):
    assert precision.float_precisions(device) == floats
    monkeypatch.setattr(precision, "find_spec", lambda library: library)
    assert precision.int8_precisions(device) == int8
    assert precision.int8_absent(device) is None
    monkeypatch.setattr(precision, "find_spec", lambda library: None)
    assert precision.int8_precisions(device) == []
    assert (precision.int8_absent(device) == "int8-dynamic by torchao: pip install 'anyvit[int8]'") == bool(int8)


@pytest.mark.parametrize("wanted", ["bfloat16", pytest.param("int8-dynamic", marks=needs_torchao)])
@pytest.mark.parametrize("shape", list(names()))
def test_what_levers_make_converts(shape, wanted):
    model = shaped(shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = precision.in_precision(model, wanted)
    with torch.inference_mode():
        for images in (IMAGES, IMAGES[:1]):
            answer = own(images.to(precision.DTYPES[wanted])).float()
            alike = nn.functional.cosine_similarity(answer.flatten(), model(images).flatten(), dim=0)
            assert alike > 0.97
            assert not torch.equal(answer, model(images))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@needs_torchao
def test_linear_layers_are_rounded_views_too_and_those_of_one_column_are_not():
    plain = vit(num_classes=1)
    rounded = precision.in_precision(plain, "int8-dynamic")
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert _rounded(rounded) == linear - {"head"}
    views = precision.in_precision(shaped("elastic").subnetwork(2), "int8-dynamic")
    assert "blocks.0.attn.qkv" in _rounded(views)


def _rounded(model: nn.Module) -> set[str]:
    return {
        name.removesuffix(".weight") for name, weight in model.named_parameters() if type(weight) is not nn.Parameter
    }


def test_sizes_of_merged_tokens_stay_float32(monkeypatch):
    from anyvit.models.layers import tome

    seen, whole = [], tome.merge_by_size
    monkeypatch.setattr(tome, "merge_by_size", lambda *given: seen.append(whole(*given)) or seen[-1])
    precision.in_precision(shaped("tokens 1"), "bfloat16")(IMAGES.bfloat16())
    assert {(x.dtype, sizes.dtype) for x, sizes in seen} == {(torch.bfloat16, torch.float32)}


def test_int8_without_torchao_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        MissingExtraError, match=r"^torchao is not installed\. Install it with: pip install 'anyvit\[int8\]'"
    ):
        precision.in_precision(vit(), "int8-dynamic")


@pytest.mark.parametrize("setting", [{"precision": "int4"}, {"precison": "bfloat16"}, {"threads": 0}, {"threads": "2"}])
def test_other_settings_are_refused(setting):
    with pytest.raises(SettingError, match=r"^the torch backend is set by \{\}, a precision of float32, .*: got \{"):
        precision.precision_of("torch", setting)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with precision.on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with precision.on_threads(None):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
