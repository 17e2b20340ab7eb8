"""What a bundle is worth on labelled images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from anyvit.deploy.bundle import Bundle
from anyvit.evaluation.metrics import Scores
from anyvit.jobs.unseen import open_unseen
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.scoring import scores_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a candidate answers labelled images.

    Attributes:
        bundle: The folder.
        candidate: The id of the candidate that answered.
        data: What was opened.
        scores: Accuracy with its interval, per-class figures, confusion matrix, calibration error.
        notes: What a user should know: images and classes left out.
    """

    bundle: str
    candidate: str
    data: str
    scores: Scores
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    bundle: str,
    data: str | None = None,
    *,
    budget: str | None = None,
    batch_size: int = 64,
    progress: Progress = silent,
) -> Evaluation:
    """Score the model of a bundle on labelled images that it has not seen in training.

    Args:
        bundle: The folder that `fit` has written.
        data: Labelled images of any format, joined by class name: their test split, their val split, or all they
            have. None: the test images of the run.
        budget: Score the most accurate candidate inside it. None: the chosen one.
        batch_size: Images a call of the model.
        progress: Called with news.

    Raises:
        BundleError: The bundle is damaged, newer than this AnyViT reads, or not one at all.
        BudgetError: No candidate is inside `budget`.
        DataError: No images, classes that the model does not know, or only images that it was trained on.
    """
    opened = Bundle.load(bundle)
    result = opened.pick(budget)
    images = open_unseen(opened, data, progress=progress)
    scores = scores_of(
        opened.runner(result),
        images.splits["test"],
        opened.preprocessing,
        opened.classes,
        batch_size=batch_size,
        progress=lambda done: progress(Event("evaluate", result.id, done=done)),
    )
    return Evaluation(str(bundle), result.id, images.source, scores, images.notes)
