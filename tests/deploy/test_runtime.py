"""Images in, labels out, from whatever an image comes in."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from anyvit.backends.precision import on_threads
from anyvit.deploy.runtime import load
from anyvit.errors import BudgetError, BundleError, SettingError
from tests.deploy.tiny import PREPROCESSING, digits

TEST = digits().splits["test"]


@pytest.fixture
def predictor(tiny_bundle):
    return load(tiny_bundle.folder)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        TEST.images.load(index).save(path)
    return paths


def test_prediction_is_what_the_runner_says(predictor, tiny_bundle, files):
    predictions = predictor.predict(files, top_k=3)
    for index, prediction in enumerate(predictions):
        expected = tiny_bundle.runner()(PREPROCESSING(TEST.images.load(index))[None])[0]
        assert prediction.name == str(files[index])
        assert prediction.label == tiny_bundle.classes[expected.argmax()]
        assert prediction.probability == pytest.approx(float(expected.max()), abs=1e-6)
        assert prediction.top[0] == (prediction.label, prediction.probability)
        assert [probability for _, probability in prediction.top] == pytest.approx(
            expected.sort().values[-3:].flip(0).tolist()
        )


def test_paths_bytes_and_pictures_give_one_answer(predictor, files):
    picture = Image.open(files[0])
    content = io.BytesIO(files[0].read_bytes())
    sources = [files[0], str(files[0]), content.getvalue(), picture, picture.convert("RGBA"), TEST.images.load(0)]
    predictions = predictor.predict(sources)
    assert len({(p.label, p.probability) for p in predictions}) == 1
    assert [p.name for p in predictions[2:]] == ["image 2", str(files[0]), "image 4", "image 5"]
    assert predictor.predict(files[0])[0] == predictions[0]  # one image need not be in a list


def test_batches_change_nothing_but_the_order_of_work(predictor, files):
    one, three = predictor.predict(files), predictor.predict(files, batch_size=3)
    assert [p.label for p in one] == [p.label for p in three]
    assert [p.probability for p in one] == pytest.approx([p.probability for p in three], abs=1e-5)


def test_unreadable_image_is_named_and_stops_no_other(predictor, files, tmp_path):
    empty, missing = tmp_path / "empty.jpg", tmp_path / "missing.jpg"
    empty.touch()
    predictions = predictor.predict([files[0], empty, missing, b"no image", files[1]], batch_size=2)
    assert [p.label is None for p in predictions] == [False, True, True, True, False]
    assert predictions[1].error == f"{empty} (the file is empty)"
    assert predictions[2].error == f"{missing} (No such file or directory)"
    assert predictions[3].error.startswith("image 3 (not a JPEG")
    assert predictions[1].top == ()


def test_budget_answers_with_another_candidate(predictor, tiny_bundle, files):
    smaller = predictor.predict(files[0], budget="latency<=3.5ms")[0]
    expected = tiny_bundle.runner(tiny_bundle.result("heads3-torch"))(PREPROCESSING(TEST.images.load(0))[None])[0]
    assert smaller.probability == pytest.approx(float(expected.max()), abs=1e-6)
    with pytest.raises(BudgetError):
        predictor.predict(files[0], budget="latency<=1us")


def test_a_runner_is_prepared_once(predictor, files, monkeypatch):
    predictor.predict(files)
    monkeypatch.setattr(type(predictor.bundle), "runner", lambda *args: pytest.fail("prepared again"))
    predictor.predict(files)


def test_threads_are_those_of_the_bundle_and_restored(predictor, files):
    seen = []
    predictor._runners[predictor.bundle.chosen.id] = lambda images: (
        seen.append(torch.get_num_threads()) or images[:, 0, 0]
    )
    with on_threads(2):
        predictor.predict(files[0])
        with pytest.raises(ZeroDivisionError), on_threads(1):
            _ = 1 / 0
        assert torch.get_num_threads() == 2
    assert seen == [predictor.bundle.conditions.threads] == [1]


def test_more_classes_than_there_are(predictor, files):
    (prediction,) = predictor.predict(files[0], top_k=99)
    assert len(prediction.top) == 10
    assert np.sum([probability for _, probability in prediction.top]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("argument", ["top_k", "batch_size"])
def test_counts_below_one_are_refused(predictor, files, argument):
    with pytest.raises(SettingError, match=f"{argument} is 0: it must be at least 1"):
        predictor.predict(files[0], **{argument: 0})


def test_load_says_damaged_weights_at_once(tiny_bundle, tmp_path):
    import shutil

    shutil.copytree(tiny_bundle.folder, tmp_path / "own")
    weights = next((tmp_path / "own").glob("weights-*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="is damaged"):
        load(tmp_path / "own")


def test_several_threads_may_ask_at_a_time(tiny_bundle, files):
    predictor = load(tiny_bundle.folder)
    budgets = [None, "latency<=3.5ms", "latency<=2.5ms"]
    alone = {budget: load(tiny_bundle.folder).predict(files, budget=budget) for budget in budgets}
    with ThreadPoolExecutor(8) as pool:
        asked = [(budget, pool.submit(predictor.predict, files, budget=budget)) for budget in budgets * 8]
        assert all(answer.result() == alone[budget] for budget, answer in asked)
