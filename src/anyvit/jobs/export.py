"""A bundle out, for machines without AnyViT."""

from __future__ import annotations

from pathlib import Path

from anyvit.deploy.bundle import Bundle
from anyvit.deploy.export import Export, export_candidate
from anyvit.deploy.formats import format_named
from anyvit.errors import DataError
from anyvit.jobs.unseen import open_unseen
from anyvit.protocols import Event, Progress, silent


def export(
    bundle: str,
    *,
    format: str = "onnx",
    out: str | None = None,
    budget: str | None = None,
    data: str | None = None,
    progress: Progress = silent,
) -> Export:
    """Write a model that carries labels and preprocessing and runs where AnyViT is not installed.

    It is verified on real images, from file to label, before it is there at all. A cascade becomes a folder of two
    models and the rule between them.

    Args:
        bundle: The folder that `fit` has written.
        format: `onnx` (one file), `openvino` (a folder) or `torch` (one file).
        out: Where to. None: `model.onnx`, `openvino/` or `model.pt2` in the bundle; of a cascade `FORMAT-cascade/`.
        budget: Export the most accurate candidate inside it. None: the chosen one.
        data: Labelled images to verify on. None: the test images of the run.
        progress: Called with news.

    Raises:
        ExportError: The exported model does not answer as the bundle does; nothing is left of it.
        BundleError: The bundle is damaged, newer than this AnyViT reads, or not one at all.
        BudgetError: No candidate is inside `budget`.
        DataError: The images cannot be opened, or have classes that the model does not know.
        SettingError: An unknown format, or `out` is no place for it.
    """
    writer = format_named(format)
    opened = Bundle.load(bundle)
    result = opened.pick(budget)
    try:
        images = open_unseen(opened, data, progress=progress)
    except DataError as error:
        raise DataError(f"{error} An export is verified on real images: name some with --data.") from error
    progress(Event("export", f"{result.id} as {format}, verified on images of {images.source}"))
    return export_candidate(opened, result, writer, Path(out) if out else None, images.splits["test"])
