"""Images in, labels out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from anyvit.data import open_images
from anyvit.deploy.runtime import Prediction, load
from anyvit.errors import DataError


def predict(
    bundle: str, images: Sequence[str], *, budget: str | None = None, top_k: int = 1, batch_size: int = 1
) -> list[Prediction]:
    """Label images with the model of a bundle.

    Args:
        bundle: The folder that `fit` has written.
        images: Files, folders, patterns such as `photos/*.jpg`, or `-` for one image on standard input.
        budget: Answer with the most accurate candidate inside it, `latency<=5ms`. None: with the chosen one.
        top_k: How many classes to name for each image.
        batch_size: Images a call of the model.

    Returns:
        A prediction for each image, in order. Where an image cannot be read, its `error` says why.

    Raises:
        BundleError: The bundle is damaged, newer than this AnyViT reads, or not one at all.
        BudgetError: No candidate is inside `budget`.
        DataError: There are no images, or not one can be read.
        SettingError: `top_k` or `batch_size` is below 1.
    """
    predictor = load(bundle)
    found = open_images([images] if isinstance(images, str) else images)
    named = ((found.name(index), partial(found.load, index)) for index in range(len(found)))
    predictions = list(predictor.answers(named, budget=budget, top_k=top_k, batch_size=batch_size))
    errors = [prediction.error for prediction in predictions if prediction.error]
    if len(errors) == len(predictions):
        raise DataError(f"none of {len(errors)} images can be read: {'; '.join(errors[:3])}{' …' * (len(errors) > 3)}")
    return predictions
