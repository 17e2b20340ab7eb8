"""The process that computes, and the front's side of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anyvit.deploy.prediction import pixels_of
from anyvit.deploy.runtime import load
from anyvit.deploy.serving import calibration
from anyvit.deploy.serving.engine import Model
from anyvit.deploy.serving.engine_link import Engine, EngineDied
from anyvit.errors import AnyViTError, BundleError
from anyvit.scaling.candidate import Cascade, Step
from tests.deploy.tiny import PREPROCESSING, RESULTS, digits

IDS = [result.id for result in RESULTS]
TEST = digits().splits["test"].images
UNLIMITED = float("inf")


def pixels(count):
    return torch.stack([pixels_of(TEST.load(index), PREPROCESSING) for index in range(count)])


def as_sent(batch):
    return [bytes(image.permute(1, 2, 0).contiguous().numpy().tobytes()) for image in batch]


def test_a_model_answers_as_the_runner_of_the_bundle(tiny_bundle):
    model = Model(load(tiny_bundle.folder))
    images = torch.stack([PREPROCESSING(TEST.load(index)) for index in range(5)])
    for result in RESULTS:
        assert model.hold(result, UNLIMITED) is None
        torch.testing.assert_close(model.answer(result.id, pixels(5)), tiny_bundle.runner(result)(images))
    assert model.resident == IDS


def test_pixels_normalized_by_the_batch_are_those_normalized_one_by_one():
    images = [TEST.load(index) for index in range(20)]
    one_by_one = torch.stack([PREPROCESSING(image) for image in images])
    together = PREPROCESSING.normalize_batch(torch.stack([pixels_of(image, PREPROCESSING) for image in images]))
    assert torch.equal(one_by_one, together)


def test_memory_bounds_how_many_candidates_are_held(tiny_bundle):
    model = Model(load(tiny_bundle.folder))
    assert model.hold(RESULTS[0], 1.0) is None  # one must be there
    why = model.hold(RESULTS[1], 1.0)
    assert why.startswith("memory: ")
    assert model.resident == IDS[:1]
    assert model.hold(RESULTS[2], UNLIMITED) is None


def test_what_is_not_kept_is_released(tiny_bundle):
    answering = load(tiny_bundle.folder)
    model = Model(answering)
    for result in RESULTS[:3]:
        model.hold(result, UNLIMITED)
    runners = [weakref.ref(answering.runner(result)) for result in RESULTS[:3]]
    model.keep(IDS[1:2])
    gc.collect()
    assert model.resident == IDS[1:2]
    assert [runner() is not None for runner in runners] == [False, True, False]
    with pytest.raises(KeyError):
        model.answer(IDS[0], pixels(1))


def test_what_cannot_be_built_is_left_out_with_its_reason(tiny_bundle):
    model = Model(load(tiny_bundle.folder))
    strange = replace(RESULTS[0], candidate=replace(RESULTS[0].candidate, backend=Step("torch", {"precision": "int3"})))
    assert "it cannot be built: " in model.hold(strange, UNLIMITED)
    assert model.resident == []


def test_a_cascade_is_timed_where_every_image_goes_on(tiny_bundle):
    small, large = RESULTS[3].candidate, RESULTS[0].candidate
    cascade = replace(RESULTS[0], candidate=Cascade(small, large, 0.0))  # none goes on by itself
    model = Model(load(tiny_bundle.folder))
    for result in (cascade, RESULTS[0], RESULTS[3]):
        model.hold(result, UNLIMITED)
    batch = pixels(4)
    assert torch.equal(model.answer(cascade.id, batch), model.answer(RESULTS[3].id, batch))
    torch.testing.assert_close(model.answer(cascade.id, batch, worst=True), model.answer(RESULTS[0].id, batch))


@pytest.mark.slow
def test_a_process_answers_fails_dies_and_starts_again(tiny_bundle):
    """One after the other, for a process takes seconds to start."""
    batch = pixels(3)
    expected = tiny_bundle.runner(RESULTS[0])(PREPROCESSING.normalize_batch(batch))

    async def play():
        engine = Engine(tiny_bundle.folder, IDS, UNLIMITED)
        news = []
        holding = await engine.start(lambda event: news.append(event.message))
        assert holding.resident == tuple(IDS)
        assert holding.memory > 1e6
        assert news == [f"loading {id}" for id in IDS]
        answer, seconds = await engine.run(IDS[0], as_sent(batch), patience=60)
        torch.testing.assert_close(answer, expected)
        assert seconds > 0
        with pytest.raises(AnyViTError, match="KeyError"):
            await engine.run("nobody", as_sent(batch), patience=60)
        answer, _ = await engine.run(IDS[0], as_sent(batch), patience=60)  # it went on
        torch.testing.assert_close(answer, expected)

        weights = tiny_bundle.document["weights"]["file"]
        assert weights in Path(f"/proc/{engine.pid}/maps").read_text()  # mapped, not read into memory of its own

        times = await calibration.measure(engine, IDS[:2], 3 * 8 * 8, 60.0)
        assert {id: tuple(row) for id, row in times.whole.items()} == dict.fromkeys(IDS[:2], calibration.SIZES)
        assert all(times.computing[id][size] <= times.whole[id][size] for id in IDS[:2] for size in calibration.SIZES)
        times = await calibration.measure(engine, IDS[:1], 3 * 8 * 8, 1e-9)
        assert list(times.whole[IDS[0]]) == [1]  # larger batches are of no use

        assert await engine.keep(IDS[:1]) > 1e6
        with pytest.raises(AnyViTError, match="KeyError"):
            await engine.run(IDS[1], as_sent(batch), patience=60)

        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineDied, match="did not answer within 0.5 s"):
            await engine.run(IDS[0], as_sent(batch), patience=0.5)
        assert engine.pid is None or engine.pid == pid
        assert (await engine.start()).resident == tuple(IDS[:1])
        assert engine.pid != pid
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="killed by signal 9"):
            await engine.run(IDS[0], as_sent(batch), patience=60)
        await engine.stop()
        with pytest.raises(EngineDied, match="does not run"):
            await engine.run(IDS[0], as_sent(batch), patience=60)

    asyncio.run(play())


@pytest.mark.slow
def test_what_keeps_an_engine_from_starting_is_said(tmp_path):
    async def play():
        with pytest.raises(BundleError, match=r"is no bundle"):
            await Engine(tmp_path, ["full-torch"], UNLIMITED).start()

    asyncio.run(play())
