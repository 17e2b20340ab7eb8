"""An exported model answers as the bundle does, without AnyViT, or it is not there."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from anyvit.deploy import standalone
from anyvit.deploy.export import export_candidate
from anyvit.deploy.formats import FORMATS, format_named
from anyvit.deploy.formats.format import Texts
from anyvit.deploy.formats.torch import TorchExport
from anyvit.errors import ExportError, SettingError
from tests.deploy.tiny import PREPROCESSING, RESULTS, digits

TEST = digits().splits["test"]
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exports(tiny_bundle, tmp_path_factory):
    """Every format, written once, of a subnetwork."""
    folder = tmp_path_factory.mktemp("exports")
    return {f.name: export_candidate(tiny_bundle, RESULTS[2], f, folder / f.target, TEST) for f in FORMATS}


@pytest.fixture(params=[format.name for format in FORMATS])
def exported(request, exports):
    return exports[request.param]


def model_of(exported):
    return str(exported.path / format_named(exported.format).model)


def test_export_is_verified_on_real_images(exported):
    verification = exported.verification
    assert verification.images == 200
    assert verification.agreement == 1
    assert verification.accuracy == verification.accuracy_before > 0.5
    assert verification.difference < 1e-4
    assert verification.holds
    assert exported.candidate == "heads3-torch"
    assert exported.notes == ()


def test_export_answers_batches_of_any_size(exported, tiny_bundle):
    run, labels, rule = standalone.open_model(model_of(exported))
    expected = tiny_bundle.runner(RESULTS[2])(IMAGES).numpy()
    np.testing.assert_allclose(run(IMAGES.numpy()), expected, atol=1e-5)
    np.testing.assert_allclose(run(IMAGES[:1].numpy()), expected[:1], atol=1e-5)
    assert labels == list(tiny_bundle.classes)
    assert rule == PREPROCESSING.to_json()


def test_export_holds_the_subnetwork_alone(exported):
    """Views must not bring the full weights along; 17,386 parameters of 4 bytes."""
    assert exported.size < 250_000
    content = b"".join(_contents(exported))
    assert b"site-packages" not in content
    assert str(exported.path.parent).encode() not in content


def _contents(exported):
    for file in [exported.path, *exported.path.rglob("*")]:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from map(archive.read, archive.namelist())
        elif file.is_file():
            yield file.read_bytes()


def test_nothing_unfinished_is_left(exports):
    folder = next(iter(exports.values())).path.parent
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.pt2", "openvino"]


def test_command_prints_the_program(exported, capfd):
    program, *arguments = shlex.split(exported.script)
    if program == "python":
        exec(arguments[1], {})  # in this process, where PyTorch is loaded already
    else:
        subprocess.run([program, *arguments], check=True)
    assert capfd.readouterr().out.strip().endswith("main(*sys.argv[1:])")


def test_onnx_needs_only_onnxruntime_numpy_and_pillow(exports, tiny_bundle, tmp_path):
    """From file to label in a new process, by the program that the file itself carries."""
    for index in range(20):
        TEST.images.load(index).save(tmp_path / f"{index}.png")
    program = (
        "import onnxruntime, sys, json\n"
        f"path, count = {str(exports['onnx'].path)!r}, 20\n"
        "script = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map['script']\n"
        "space = {'__name__': 'predict'}\n"
        "exec(script, space)\n"
        "run, labels, rule = space['open_model'](path)\n"
        "inputs = [space['prepare'](space['read'](f'{index}.png'), rule)[None] for index in range(count)]\n"
        "answers = [labels[run(image)[0].argmax()] for image in inputs]\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(json.dumps([answers, sorted(loaded & {'anyvit', 'torch', 'timm'})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answers, forbidden = json.loads(done.stdout)
    runner = tiny_bundle.runner(RESULTS[2])
    expected = [runner(PREPROCESSING(TEST.images.load(index))[None])[0].argmax() for index in range(20)]
    assert forbidden == []
    assert answers == [tiny_bundle.classes[index] for index in expected]


def test_bfloat16_is_exported_as_float32_and_said(tiny_bundle, tmp_path):
    exported = export_candidate(tiny_bundle, RESULTS[1], TorchExport(), tmp_path / "model.pt2", TEST)
    assert exported.notes == ("full-torch-bfloat16 computes in bfloat16; the export holds and computes float32.",)
    assert exported.verification.holds


class Wrong(TorchExport):
    """Writes another model than it is given."""

    def __init__(self, spoil):
        self.spoil = spoil

    def write(self, model, example, texts, target):
        super().write(nn.Sequential(model, self.spoil).eval(), example, texts, target)


class Sharper(nn.Module):
    def forward(self, probabilities):
        return (probabilities.log() * 1.1).softmax(-1)  # the same labels, other logits


class NotANumber(nn.Module):
    def forward(self, probabilities):
        return probabilities / (probabilities - probabilities)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            Sharper(),
            r"like the bundle: 100.00% of 200 labels agree, .* largest logit difference 0\.\d+ \(limit 0\.00",
        ),
        (NotANumber(), r"some probabilities are not numbers"),
    ],
)
def test_model_that_answers_otherwise_is_not_left_there(tiny_bundle, tmp_path, spoil, words):
    with pytest.raises(ExportError, match=words):
        export_candidate(tiny_bundle, RESULTS[2], Wrong(spoil), tmp_path / "model.pt2", TEST)
    assert list(tmp_path.iterdir()) == []


def test_earlier_export_survives_a_failure_and_is_replaced_by_a_success(tiny_bundle, tmp_path):
    target = tmp_path / "model.pt2"
    target.write_bytes(b"earlier")
    with pytest.raises(ExportError):
        export_candidate(tiny_bundle, RESULTS[3], Wrong(Sharper()), target, TEST)
    assert target.read_bytes() == b"earlier"
    export_candidate(tiny_bundle, RESULTS[3], TorchExport(), target, TEST)
    assert standalone.open_model(str(target))[1] == list(tiny_bundle.classes)


def test_other_labels_are_refused(tiny_bundle, tmp_path):
    class Mislabelled(TorchExport):
        def write(self, model, example, texts, target):
            super().write(model, example, Texts("[]", texts.preprocessing, "", ""), target)

    with pytest.raises(ExportError, match="carries other labels than the bundle"):
        export_candidate(tiny_bundle, RESULTS[3], Mislabelled(), tmp_path / "model.pt2", TEST)


def test_place_of_the_wrong_kind_is_refused(tiny_bundle, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    (tmp_path / "folder.onnx").mkdir()
    for name, target, words in [
        ("onnx", "model.bin", r"must end in \.onnx"),
        ("torch", "model", r"must end in \.pt2"),
        ("onnx", "folder.onnx", "is a folder; onnx writes a file"),
        ("openvino", "full", "holds something else than an earlier export"),
    ]:
        with pytest.raises(SettingError, match=words):
            export_candidate(tiny_bundle, RESULTS[3], format_named(name), tmp_path / target, TEST)
    with pytest.raises(SettingError, match=r"unknown format 'onyx'\. Did you mean 'onnx'"):
        format_named("onyx")
