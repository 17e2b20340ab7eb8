"""A candidate of a bundle, written for machines without AnyViT, and verified there and then."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from anyvit.backends.graph import Probabilities
from anyvit.data import Split
from anyvit.deploy import standalone
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.formats import Format, Texts
from anyvit.deploy.formats.cascade import CascadeModel, TwoFiles
from anyvit.deploy.verification import ENOUGH, Verification, verify
from anyvit.errors import ExportError, SettingError
from anyvit.files import PARTIAL, put_in_place
from anyvit.models.contract import is_plain_vit
from anyvit.models.hydravit import HydraViT
from anyvit.models.layers.sliceable import extracted
from anyvit.scaling.candidate import Candidate, Cascade, Result


@dataclass(frozen=True, slots=True)
class Export:
    """An exported model.

    Attributes:
        path: The file or folder.
        format: The name of its format.
        candidate: The id of the candidate that it holds.
        size: Bytes on disk.
        verification: How it answers on real images, against the bundle.
        notes: What a user should know.
        script: A shell command that prints a Python program which uses the model.
    """

    path: Path
    format: str
    candidate: str
    size: int
    verification: Verification
    notes: tuple[str, ...]
    script: str


def export_candidate(bundle: Bundle, result: Result, format: Format, target: Path | None, split: Split) -> Export:
    """Write a candidate to `target` in a format, whole and verified or not at all.

    Args:
        bundle: Where the weights are.
        result: The candidate. Whatever its backend computes in, float32 is written. A cascade becomes a folder.
        format: How to write.
        target: The file or folder; what an earlier export left there is replaced. None: the usual one in the bundle.
        split: Real images to verify the outcome on, labels in the order of the bundle's classes.

    Raises:
        ExportError: The exported model does not answer as the bundle does; nothing is left of it.
        SettingError: `target` is of the wrong kind, or holds something else.
    """
    model = _model(bundle, result.candidate)
    if isinstance(model, CascadeModel):
        format = TwoFiles(format)
    target = target or bundle.folder / format.target
    _check_target(target, format)
    example = bundle.conditions.example(batch=2)  # of a batch of 1, torch.export would make a constant
    partial = target.with_name(PARTIAL + target.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # what a crash has left
    try:
        format.write(model, example, _texts(bundle, result, format, target), partial)
        verification = verify(partial / format.model, model, bundle.classes, bundle.preprocessing, split)
        if not verification.holds:
            raise ExportError(
                f"the {format.name} model of {result.id} does not answer like the bundle: {verification}. "
                "Nothing was written. Try another format."
            )
        put_in_place(partial, target)
    finally:
        _remove(partial)
    return Export(
        path=target,
        format=format.name,
        candidate=result.id,
        size=sum(file.stat().st_size for file in [target, *target.rglob("*")] if file.is_file()),
        verification=verification,
        notes=_notes(result, verification),
        script=format.how_to_read.format(target=target),
    )


def _model(bundle: Bundle, candidate: Candidate | Cascade) -> nn.Module:
    """From images to probabilities, in float32."""
    if isinstance(candidate, Cascade):
        return CascadeModel(_model(bundle, candidate.small), _model(bundle, candidate.large), candidate.threshold)
    return Probabilities(_fixed(bundle.shaped(candidate))).float().eval()


def _check_target(target: Path, format: Format) -> None:
    suffix = Path(format.target).suffix
    if target.suffix != suffix and suffix:
        raise SettingError(f"{target} must end in {suffix} for the format {format.name}.")
    if suffix and target.is_dir():
        raise SettingError(f"{target} is a folder; {format.name} writes a file. Name another --out.")
    foreign = target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / format.model).is_file())
    if isinstance(format, TwoFiles) and target.suffix == Path(format.part.target).suffix != "":
        raise SettingError(f"{target} names a file; a cascade is written as a folder. Name another --out.")
    if not suffix and foreign:
        raise SettingError(f"{target} holds something else than an earlier export. Name another --out.")


def _fixed(model: nn.Module) -> nn.Module:
    """A copy of one fixed size made of plain timm layers, where `model` is a subnetwork of a larger one."""
    if isinstance(model, HydraViT):
        return model.extract(model.num_heads)
    return extracted(model) if is_plain_vit(model) else copy.deepcopy(model)


def _texts(bundle: Bundle, result: Result, format: Format, target: Path) -> Texts:
    readme = (
        f"An image classifier exported by AnyViT: {result.id} of a run on {bundle.document['data']['source']}.\n"
        f"Input: images, float32 (B, 3, S, S) with S = {bundle.preprocessing.image_size}, prepared as `preprocessing` "
        "says. Output: probabilities (B, K), in the order of `labels`.\n"
        f"Print a program that labels image files with: {format.how_to_read.format(target=target.name)}\n"
    )
    return Texts(
        labels=json.dumps(bundle.classes),
        preprocessing=json.dumps(bundle.preprocessing.to_json()),
        readme=readme,
        script=Path(standalone.__file__).read_text(encoding="utf-8"),
    )


def _notes(result: Result, verification: Verification) -> tuple[str, ...]:
    notes = []
    for part in result.candidate.parts:
        if precision := part.backend.setting.get("precision"):
            notes.append(f"{part.id} computes in {precision}; the export holds and computes float32.")
    if verification.images < ENOUGH:
        notes.append(
            f"Verified on all {verification.images} images there are, fewer than {ENOUGH}: name more with --data."
        )
    return tuple(notes)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
