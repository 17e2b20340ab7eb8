"""What candidates are worth on labelled images."""

from __future__ import annotations

import numpy as np
import torch

from anyvit.data import Split
from anyvit.data.images import ArrayImages
from anyvit.data.preprocessing import Preprocessing
from anyvit.models import create_model
from anyvit.protocols import UNCHANGED
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.scoring import score, scores_of
from anyvit.scaling.workshop import Workshop


def split(count):
    pixels = [np.full((8, 8, 3), 255 * (index % 2), dtype=np.uint8) for index in range(count)]
    return Split(ArrayImages(pixels, [str(index) for index in range(count)]), np.arange(count) % 2)


def test_scores_of_a_runner_that_knows():
    def bright(images):
        return torch.stack([images.mean((1, 2, 3)) < 0, images.mean((1, 2, 3)) > 0], 1).float()

    scores = scores_of(bright, split(70), Preprocessing(8), ("dark", "light"))
    assert (scores.accuracy, scores.count) == (1.0, 70)
    assert list(scores.classes) == ["dark", "light"]


def test_score_adds_the_accuracy_and_keeps_the_rest():
    model = create_model("hydravit_tiny_patch2_8", num_classes=2).eval()
    found = [
        Result(Candidate((Step("heads", setting),), Step("torch")), {"params": 1.0})
        for setting in (UNCHANGED, {"heads": 1})
    ]
    events = []
    scored = score(
        Workshop(model, torch.zeros(1, 3, 8, 8)), found, split(10), Preprocessing(8), ("dark", "light"), events.append
    )
    assert [result.candidate for result in scored] == [result.candidate for result in found]
    assert all(0 <= result.accuracy <= 1 and result.costs == {"params": 1.0} for result in scored)
    assert [event.message for event in events] == [result.id for result in found]
