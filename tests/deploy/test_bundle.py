"""A bundle is whole or refused, and answers as what was written."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil

import pytest
import torch

from anyvit.deploy import bundle as bundle_module
from anyvit.deploy.bundle import DOCUMENT, Bundle, write_bundle
from anyvit.errors import AnyViTError, BudgetError, BundleError
from anyvit.protocols import UNCHANGED
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.workshop import prepare
from tests.deploy.tiny import RESULTS, document, trained, training_images, write_tiny

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own_bundle(tiny_bundle, tmp_path):
    """A copy to damage."""
    shutil.copytree(tiny_bundle.folder, tmp_path / "own")
    return tmp_path / "own"


def test_bundle_answers_as_what_was_written(tiny_bundle):
    bundle = Bundle.load(tiny_bundle.folder)
    for result in RESULTS:
        expected = prepare(trained(), result.candidate, IMAGES)(IMAGES)
        assert torch.equal(bundle.runner(bundle.result(result.id))(IMAGES), expected)
    assert bundle.results == RESULTS
    assert bundle.chosen == RESULTS[0]
    assert bundle.training_images() == set(training_images())
    assert bundle.model() is bundle.model()  # one set of weights for all runners


def test_folder_holds_nothing_else(tiny_bundle):
    names = sorted(path.name.split("-")[0] for path in tiny_bundle.folder.iterdir())
    assert names == [DOCUMENT, "training", "weights"]


def test_rewrite_keeps_the_files(own_bundle):
    bundle = Bundle.load(own_bundle)
    again = bundle.rewrite({**bundle.document, "chosen": RESULTS[2].id})
    assert again.chosen == RESULTS[2]
    assert torch.equal(again.runner()(IMAGES), bundle.runner(RESULTS[2])(IMAGES))


def test_numbers_without_a_word_in_json_are_none(tmp_path):
    bundle = write_tiny(tmp_path, history=[{"step": 1, "epoch": 1.0, "loss": float("nan")}])
    assert bundle.document["history"] == [{"step": 1, "epoch": 1.0, "loss": None}]


# Damage


def test_folder_that_is_none(tmp_path):
    with pytest.raises(BundleError, match="nowhere does not exist: name the folder that `anyvit fit` has written"):
        Bundle.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file is a file"):
        Bundle.load(tmp_path / "file")
    with pytest.raises(BundleError, match=r"is no bundle: it has no bundle\.json"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], r"bundle\.json is damaged \(.*Copy the whole folder again"),
        (lambda text: "\xff\xfe", r"bundle\.json is damaged"),
        (lambda text: "[]", r"bundle\.json is damaged: it names no schema"),
        (
            lambda text: text.replace('"schema": 1', '"schema": 2'),
            r"schema 2, newer than this AnyViT reads \(1\): update",
        ),
        (lambda text: text.replace('"schema": 1', '"schema": "1"'), r"is damaged: it names no schema"),
        (lambda text: text.replace('"weights": {', '"sweights": {'), r"is damaged: it lacks weights"),
        (lambda text: text.replace('"sha256"', '"sha"'), r"is damaged \(KeyError: 'sha256'\)"),
        (lambda text: text.replace('"latency": 0.004', '"latency": 0.004]'), r"is damaged"),
        (
            lambda text: text.replace('"chosen": "full-torch"', '"chosen": "ful-torch"'),
            r"unknown candidate 'ful-torch'. Did you mean",
        ),
        (lambda text: text.replace('"crop_ratio": 1.0', '"crop_ratio": 3.0'), r"cannot be used by .*crop_ratio 3"),
    ],
)
def test_damaged_document(own_bundle, change, words):
    path = own_bundle / DOCUMENT
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode("latin-1"))
    with pytest.raises(BundleError, match=words):
        Bundle.load(own_bundle)


@pytest.mark.parametrize("kind", ["weights", "training-images"])
def test_missing_file(own_bundle, kind):
    next(own_bundle.glob(f"{kind}-*")).unlink()
    with pytest.raises(BundleError, match=rf"{kind}-\w+\.safetensors is missing\. Copy the whole folder again"):
        Bundle.load(own_bundle)


@pytest.mark.parametrize(
    ("kind", "use"),
    [("weights", lambda bundle: bundle.runner()), ("training-images", lambda bundle: bundle.training_images())],
)
@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"\x01"])
def test_damaged_file(own_bundle, kind, use, damage):
    path = next(own_bundle.glob(f"{kind}-*"))
    path.write_bytes(damage(path.read_bytes()))
    bundle = Bundle.load(own_bundle)
    with pytest.raises(BundleError, match=rf"{kind}-\w+\.safetensors is damaged: its SHA-256 is not the one"):
        use(bundle)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            '"name": "heads"',
            '"name": "tails"',
            r"bundle\.json, by AnyViT .*, cannot be used by .*: unknown lever 'tails'",
        ),
        ("torch", "torque", r"cannot be used by .*: unknown backend 'torque'"),
        ('"embed_dim": 32', '"embed_dim": 48', r"bundle\.json is damaged \(RuntimeError"),
        ('"name": "vit_tiny_patch16_224"', '"name": "vit_tinny"', r"cannot be used by .*vit_tinny"),
    ],
)
def test_document_that_its_reader_cannot_follow(own_bundle, before, after, words):
    path = own_bundle / DOCUMENT
    path.write_text(path.read_text().replace(before, after))
    bundle = Bundle.load(own_bundle)
    with pytest.raises(BundleError, match=words):
        bundle.runner(bundle.results[2])


# Crashes


class Crash(BaseException):
    """What stands for the end of the process: nothing catches it."""


def crash_at(monkeypatch, step: int) -> list[str]:
    """Crash before file operation number `step`; the list tells which were done."""
    done: list[str] = []

    def counted(name, operation):
        def call(*args, **kwargs):
            if len(done) == step:
                raise Crash
            done.append(name)
            return operation(*args, **kwargs)

        return call

    for name in ("open", "fsync", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return done


class KeptRunner:
    """A runner that took long to build."""

    def __init__(self, kept: bytes) -> None:
        self.kept = kept


class Keeper:
    """A backend that keeps what it has built in a file."""

    def prepare(self, model, setting, example, *, images=None):
        return KeptRunner(b"built slowly")

    def save(self, runner, folder):
        (folder / "kept.bin").write_bytes(runner.kept)

    def load(self, model, setting, folder):
        return KeptRunner((folder / "kept.bin").read_bytes())


@pytest.fixture
def keeper(monkeypatch):
    backend = Keeper()
    monkeypatch.setattr(bundle_module, "backend_named", lambda name: backend)
    return backend


KEPT = Candidate((Step("heads", UNCHANGED),), Step("keeper"))


def write_other(folder, keeper):
    """Another bundle: other weights, other images, and a runner that is kept."""
    model = copy.deepcopy(trained())
    with torch.no_grad():
        model.head.bias += 1
    content = document()
    content["candidates"] = [*content["candidates"], {**content["candidates"][0], **KEPT.to_json(), "id": KEPT.id}]
    runners = {KEPT.id: keeper.prepare(model, UNCHANGED, IMAGES)}
    return write_bundle(folder, model=model, document=content, training_images=[1, 2], runners=runners)


def test_crash_at_any_moment_leaves_one_whole_bundle(own_bundle, tmp_path, keeper, monkeypatch):
    step, outcomes, last = 0, [], None
    while last is not False:
        folder = tmp_path / f"crash{step}"
        shutil.copytree(own_bundle, folder)
        with monkeypatch.context() as context:
            crash_at(context, step)
            try:
                write_other(folder, keeper)
                last = False
            except Crash:
                last = True
        bundle = Bundle.load(folder)
        new = len(bundle.training_images()) == 2
        weights = bundle.model().state_dict()["head.bias"] - trained().state_dict()["head.bias"]
        assert torch.allclose(weights, torch.full((10,), float(new)), atol=1e-5)
        if new:
            assert bundle.runner(bundle.result(KEPT.id)).kept == b"built slowly"
        outcomes.append(new)
        write_other(folder, keeper)
        assert not list(folder.glob(".partial*"))
        assert len(list(folder.glob("*.safetensors"))) == 2
        shutil.rmtree(folder)
        step += 1
    assert step > 15
    assert outcomes == sorted(outcomes)  # the old one up to a moment, the new one from it on
    assert True in outcomes
    assert False in outcomes


def test_full_disk_is_said_and_leaves_the_old_bundle(own_bundle, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(AnyViTError, match=r"cannot be written \(No space left on device\)"):
            write_tiny(own_bundle, chosen=RESULTS[2].id)
    assert Bundle.load(own_bundle).chosen == RESULTS[0]
    assert not list(own_bundle.glob(".partial*"))


# What backends keep


def test_kept_runner_is_loaded_and_checked(own_bundle, keeper):
    bundle = write_other(own_bundle, keeper)
    assert bundle.runner(bundle.result(KEPT.id)).kept == b"built slowly"
    (kept,) = own_bundle.glob(f"candidates/{KEPT.id}/*/kept.bin")
    kept.write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"kept\.bin is damaged"):
        Bundle.load(own_bundle).runner(bundle.result(KEPT.id))
    kept.unlink()
    with pytest.raises(BundleError, match=r"kept\.bin is missing"):
        Bundle.load(own_bundle)


def test_what_no_longer_belongs_is_removed(own_bundle, keeper):
    write_other(own_bundle, keeper)
    write_tiny(own_bundle)
    assert not (own_bundle / "candidates").exists()
    assert len(list(own_bundle.glob("*.safetensors"))) == 2


# Choice


@pytest.mark.parametrize(
    ("budget", "index"),
    [(None, 0), ("", 0), ("latency<=3.5ms", 2), ("latency<=3ms", 3), ("params<=20k", 2), ("accuracy>=0.94", 0)],
)
def test_pick_takes_the_most_accurate_inside(tiny_bundle, budget, index):
    assert tiny_bundle.pick(budget) == RESULTS[index]  # 3 ms inside 3 ms: not with 5 % to spare


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("latency<=1ms", r"the closest, heads2-torch, misses latency<=1ms by 110.0% \(2 ms\) \(timings count with 5%"),
        ("params<=6k", r"heads2-torch, misses params<=6k by 33.3% \(8 k\)\.$"),
        ("latency<=2.5ms, size<=30kB", r"heads2-torch, misses size<=30kB by 6.7% \(32 kB\)\.$"),
        ("latency<=3.5ms, accuracy>=0.95", r"heads3-torch, misses accuracy>=0.95 by 5.3% \(90 %\)"),
        ("memory<=1MB", r"holds no figures for memory\. It holds: latency, params, size"),
    ],
)
def test_pick_says_by_how_much_the_closest_misses(tiny_bundle, budget, words):
    with pytest.raises(BudgetError, match=words):
        tiny_bundle.pick(budget)


def test_timings_of_another_device_are_unproven(own_bundle):
    path = own_bundle / DOCUMENT
    content = json.loads(path.read_text())
    content["device"]["fingerprint"] = "0" * 12
    path.write_text(json.dumps(content))
    bundle = Bundle.load(own_bundle)
    assert not bundle.measured_here
    with pytest.warns(UserWarning, match="unproven here until `anyvit measure"):
        bundle.pick("latency<=3.5ms")
    assert bundle.pick("params<=20k") == RESULTS[2]
