"""ONNX Runtime: what is offered where, what becomes int8, and what lies on disk."""

import onnx
import pytest
import torch

from anyvit.backends import backend_named
from anyvit.backends.onnxruntime import FILE
from anyvit.errors import ModelError, SettingError
from anyvit.protocols import Device
from tests.backends.shapes import IMAGES, shuffled, vit

BACKEND = backend_named("onnxruntime")
INT8 = [{"precision": "int8-dynamic"}, {"precision": "int8-static"}]


@pytest.fixture(scope="module")
def model():
    return shuffled(vit())


@pytest.mark.parametrize(
    ("device", "offered"),
    [
        (Device("cpu", "x86 with VNNI", 2, ("avx2", "avx512_vnni")), [{}, *INT8]),
        (Device("cpu", "Arm with dot products", 2, ("asimd", "asimddp")), [{}, *INT8]),
        (Device("cpu", "x86 without", 2, ("avx2", "avx512f")), [{}]),
        (Device("cpu", "silent", 2), [{}, *INT8]),
        (Device("cuda", "GPU", 2), []),
    ],
)
def test_int8_is_offered_where_the_processor_computes_in_it(device, offered):
    assert BACKEND.settings(device) == offered


@pytest.mark.parametrize("setting", INT8, ids=lambda setting: setting["precision"])
def test_products_with_weights_become_int8_and_nothing_else(model, setting, tmp_path):
    runner = BACKEND.prepare(model, setting, IMAGES, images=IMAGES)
    BACKEND.save(runner, tmp_path)
    graph = onnx.load(tmp_path / FILE).graph
    weights = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    matrices = [tensor for tensor in weights if len(tensor.dims) == 2 and min(tensor.dims) > 1]
    assert len(matrices) == 4 * len(model.blocks) + 1
    operations = [node.op_type for node in graph.node]
    assert operations.count("Softmax") == len(model.blocks) + 1
    assert operations.count("LayerNormalization") == 2 * len(model.blocks) + 1


def test_the_same_files_come_of_the_same_model(model, tmp_path):
    for setting in ({}, *INT8):
        for name in ("one", "other"):
            (tmp_path / name).mkdir(exist_ok=True)
            BACKEND.save(BACKEND.prepare(model, setting, IMAGES, images=IMAGES), tmp_path / name)
        assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "other" / FILE).read_bytes()


def test_loading_needs_no_weights_and_says_what_is_damaged(model, tmp_path):
    runner = BACKEND.prepare(model, {}, IMAGES)
    BACKEND.save(runner, tmp_path)
    assert torch.equal(BACKEND.load(vit().to("meta"), {}, tmp_path)(IMAGES), runner(IMAGES))
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"^VisionTransformer does not run in ONNX Runtime: .*[Pp]arsing failed"):
        BACKEND.load(model, {}, tmp_path)


def test_large_batches_are_answered_in_parts(model):
    images = torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    answers = BACKEND.prepare(model, {}, IMAGES)(images)
    with torch.inference_mode():
        torch.testing.assert_close(answers, model(images).softmax(1), atol=1e-4, rtol=0)


def test_calibration_without_images_is_refused(model):
    with pytest.raises(SettingError, match="int8-static of the onnxruntime backend is calibrated on images"):
        BACKEND.prepare(model, INT8[1], IMAGES)


@pytest.mark.parametrize(
    "images",
    [IMAGES[:, :1], IMAGES[..., :4], (255 * IMAGES).to(torch.uint8), torch.full_like(IMAGES, float("nan"))],
    ids=["channels", "size", "bytes", "no numbers"],
)
def test_calibration_images_of_another_kind_are_refused(model, images):
    with pytest.raises(SettingError, match=r"^calibration takes preprocessed images like the example, .*: got torch\."):
        BACKEND.prepare(model, INT8[1], IMAGES, images=images)
