"""OpenVINO: what is offered where and with what, batches, files, and that nothing goes over the network."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from anyvit.backends import backend_named, openvino
from anyvit.backends.openvino import FILE
from anyvit.errors import MissingExtraError, ModelError, SettingError
from anyvit.protocols import Device
from tests.backends.shapes import IMAGES, shuffled, vit

BACKEND = backend_named("openvino")
BFLOAT16, INT8 = {"precision": "bfloat16"}, {"precision": "int8-static"}
FAST = Device("cpu", "fast", 2, ("avx512_bf16", "avx512_vnni"))
nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="needs the extra int8")


@pytest.fixture(scope="module")
def model():
    return shuffled(vit())


@pytest.mark.parametrize(
    ("device", "offered"),
    [
        (FAST, [{}, BFLOAT16, INT8]),
        (Device("cpu", "some", 2, ("avx512_vnni",)), [{}, INT8]),
        (Device("cpu", "silent", 2), [{}, BFLOAT16, INT8]),
        (Device("cpu", "old", 2, ("avx2",)), [{}]),
        (Device("cuda", "GPU", 2), []),
    ],
)
def test_precisions_are_offered_where_the_processor_computes_in_them(device, offered, monkeypatch):
    monkeypatch.setattr(openvino, "find_spec", lambda name: name)
    assert BACKEND.settings(device) == offered
    assert BACKEND.absent(device) is None


def test_without_nncf_int8_is_left_out_and_the_extra_is_named(model, monkeypatch):
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    assert BACKEND.settings(FAST) == [{}, BFLOAT16]
    assert BACKEND.absent(FAST) == "int8-static in OpenVINO, by NNCF: pip install 'anyvit[int8]'"
    with pytest.raises(MissingExtraError, match=r"nncf is not installed.*pip install 'anyvit\[int8\]'"):
        BACKEND.prepare(model, INT8, IMAGES, images=IMAGES)


def test_float32_is_float32(model):
    """By default OpenVINO would take bfloat16 where the processor has it."""
    exact, rounded = (BACKEND.prepare(model, setting, IMAGES)(IMAGES) for setting in ({}, BFLOAT16))
    with torch.inference_mode():
        torch.testing.assert_close(exact, model(IMAGES).softmax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0)


def test_large_batches_and_what_is_left_over(model):
    images = torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    answers = BACKEND.prepare(model, {}, IMAGES)(images)
    with torch.inference_mode():
        torch.testing.assert_close(answers, model(images).softmax(1), atol=1e-4, rtol=0)


@nncf
def test_int8_is_saved_with_its_weights_in_8_bits_and_to_the_same_bytes(model, tmp_path):
    for name, setting in (("float", {}), ("one", INT8), ("other", INT8)):
        (tmp_path / name).mkdir()
        BACKEND.save(BACKEND.prepare(model, setting, IMAGES, images=IMAGES), tmp_path / name)
    one, other = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
    assert sorted(one) == ["model.bin", FILE]
    assert len(one["model.bin"]) < 0.5 * (tmp_path / "float" / "model.bin").stat().st_size


def test_loading_needs_no_weights_and_says_what_is_damaged(model, tmp_path):
    runner = BACKEND.prepare(model, {}, IMAGES[:1])
    BACKEND.save(runner, tmp_path)
    loaded = BACKEND.load(vit().to("meta"), {}, tmp_path)
    assert torch.equal(loaded(IMAGES), runner(IMAGES))
    assert loaded.batch == 1
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"^VisionTransformer does not run in OpenVINO: "):
        BACKEND.load(model, {}, tmp_path)


def test_calibration_without_images_is_refused(model):
    with pytest.raises(SettingError, match="int8-static of the openvino backend is calibrated on images"):
        BACKEND.prepare(model, INT8, IMAGES)


@nncf
@pytest.mark.slow
def test_nncf_reports_nothing_over_the_network():
    """In a process without pytest, where it would."""
    program = (
        "from anyvit.backends.openvino import _nncf; import os; _nncf()\n"
        "from nncf.telemetry.decorator import telemetry; print(type(telemetry).__name__, 'NNCF_CI' in os.environ)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["MagicMock", "False"]
