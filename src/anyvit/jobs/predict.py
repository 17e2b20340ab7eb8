"""Images in, labels out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from anyvit.data import open_images
from anyvit.deploy.prediction import Prediction
from anyvit.deploy.runtime import load
from anyvit.errors import DataError


def predict(
    bundle: str,
    images: Sequence[str],
    *,
    budget: str | None = None,
    top_k: int = 1,
    batch_size: int = 1,
    quorum: int | None = None,
    deadline: str | None = None,
    transport: str | None = None,
    token_file: str | None = None,
    tls_ca: str | None = None,
) -> list[Prediction]:
    """Label images with the model of a bundle, or with one that is spread over boards.

    Args:
        bundle: The folder that `fit`, or `spread`, has written.
        images: Files, folders, patterns such as `photos/*.jpg`, or `-` for one image on standard input.
        budget: Answer with the most accurate candidate inside it, `latency<=5ms`. None: with the chosen one.
        top_k: How many classes to name for each image.
        batch_size: Images a call of the model.
        quorum: Of boards: the least number of groups, or sub-models, that an answer may come from. None: 1.
        deadline: Of boards: how long an answer may take, `500ms`. None: ten times what was planned, at least a second.
        transport: How boards are reached: `grpc` (None means that) or `ray`.
        token_file: A file with the token that boards ask for. None: the environment variable ANYVIT_TOKEN.
        tls_ca: The certificates (PEM) that sign those of the boards. None: connections are not encrypted.

    Returns:
        A prediction for each image, in order. Where an image cannot be read, its `error` says why.

    Raises:
        BundleError: The bundle is damaged, newer than this AnyViT reads, or not one at all.
        BudgetError: No candidate is inside `budget`.
        DataError: There are no images, or not one can be read.
        SettingError: A value is outside its range, or is about boards where there are none.
        SpreadError: Fewer groups, or sub-models, than the quorum answer.
        MissingExtraError: The library of the transport is not installed.
    """
    with load(
        bundle, quorum=quorum, deadline=deadline, transport=transport, token_file=token_file, tls_ca=tls_ca
    ) as opened:
        found = open_images([images] if isinstance(images, str) else images)
        named = ((found.name(index), partial(found.load, index)) for index in range(len(found)))
        predictions = list(opened.answers(named, budget=budget, top_k=top_k, batch_size=batch_size))
    errors = [prediction.error for prediction in predictions if prediction.error]
    if len(errors) == len(predictions):
        raise DataError(f"none of {len(errors)} images can be read: {'; '.join(errors[:3])}{' …' * (len(errors) > 3)}")
    return predictions
