"""The folder that a model is placed with: the plan, the hub's own part, and a part for each board.

    placed/placement.json       plan, classes, preprocessing, digests of all files, the accuracies known
    placed/hub.safetensors      what the hub computes itself
    placed/part-1.safetensors   what the first board of the plan holds, and so on

It is written beside its place and renamed, so it is there whole or not at all. The hub needs the first two, a board its
part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anyvit import __version__
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.document import read_listed, refuse_newer, to_text
from anyvit.deploy.spread.modules import hub_side
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.tensor_file import read_tensors, refuse_damaged, write_tensors
from anyvit.errors import BundleError, SettingError
from anyvit.files import PARTIAL, put_in_place, write_text
from anyvit.models.hsvit import HSViT
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.form import Form
from anyvit.scaling.spread.plan import Plan
from anyvit.scaling.spread.vote import Missing

if TYPE_CHECKING:
    from anyvit.scaling.spread.class_split import ClassSplit  # it trains, which who serves or is a board need not load

SCHEMA = 1
"""The version of `placement.json` that this AnyViT writes, and the newest that it reads."""

DOCUMENT, HUB = "placement.json", "hub.safetensors"
REMEDY = "Copy the whole folder again, or repeat `anyvit spread`."


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """A board's part, as the hub knows it without its weights. `Part` says what the fields are.

    Attributes:
        file: Its name in the folder.
        sha256: Of that file.
    """

    board: str
    file: str
    sha256: str
    hash: str
    kind: str
    members: tuple[int, ...]
    gives: tuple[int, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlacedPart:
        return cls(**{**data, "members": tuple(data["members"]), "gives": tuple(data["gives"])})


@dataclass(frozen=True, eq=False)
class Placed:
    """A placed folder whose `placement.json` was read.

    Attributes:
        folder: Where it lies.
        document: The content of `placement.json`.
    """

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Placed:
        """Read `placement.json`. The hub's own part is read, and checked, when it is asked for.

        Raises:
            BundleError: It is no placed folder, damaged, or a newer AnyViT wrote it.
        """
        placed = cls(Path(folder), _read_document(Path(folder)))
        with refuse_damaged(placed.folder / DOCUMENT, REMEDY):
            _ = placed.plan, placed.classes, placed.preprocessing, placed.parts, placed.known
        return placed

    @cached_property
    def plan(self) -> Plan:
        """Who holds what, and what it was predicted to cost."""
        return Plan.from_json(self.document["plan"])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return tuple(self.document["classes"])

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What turns an image into the model's input."""
        return Preprocessing.from_json(self.document["preprocessing"])

    @cached_property
    def parts(self) -> tuple[PlacedPart, ...]:
        """The part of each board, in the order of the plan."""
        return tuple(PlacedPart.from_json(part) for part in self.document["parts"])

    @cached_property
    def known(self) -> Mapping[int, Missing]:
        """The accuracy known with so many groups, or sub-models, missing."""
        return {entry["missing"]: Missing(**entry) for entry in self.document["known"]}

    @property
    def members(self) -> int:
        """How many groups, or sub-models, there are on all boards together."""
        return sum(len(part.members) for part in self.parts)

    @property
    def result(self) -> Result:
        """The one candidate that all boards together are, as it was planned; its accuracy is that with all there."""
        candidate = Candidate((), Step("spread", {"boards": len(self.parts)}))
        whole = self.known.get(0)
        costs = {"latency": self.plan.latency_s, "throughput": self.plan.throughput}
        return Result(candidate, costs, accuracy=whole.mean if whole else None)

    def hub_tensors(self) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        """What the hub computes itself: the document that rebuilds it, and its weights.

        Raises:
            BundleError: The file is missing or damaged.
        """
        path = self.folder / HUB
        content = read_listed(path, self.document["hub"]["sha256"], DOCUMENT, REMEDY)
        return read_tensors(content, path, SCHEMA, REMEDY)


def is_placed(folder: str | Path) -> bool:
    """Whether it is a placed folder rather than a bundle."""
    return (Path(folder) / DOCUMENT).is_file()


def write_placed(out: Path, bundle: Bundle, model: HSViT, plan: Plan, *, known: Sequence[Missing]) -> Placed:
    """Write the parts of an HSViT, in the place of what an earlier `spread` left in `out`.

    Args:
        out: The folder.
        bundle: Whose classes and preprocessing these are.
        model: The model, in evaluation mode.
        plan: Which board holds which of its groups.
        known: The accuracy with none, one, … of the groups missing, as far as it is known.

    Raises:
        SettingError: `out` holds something else, or the plan does not place each group of the model once.
    """
    _see_that_all_placed([group for share in plan.shares for group in share.groups], model.groups)
    rule = bundle.preprocessing
    parts = [
        Part.of_groups(share.board.name, model, share.groups, trunk=plan.trunk, preprocessing=rule)
        for share in plan.shares
    ]
    hub = hub_side(plan.trunk, model.part(model.groups))
    document = {"kind": "groups", "trunk": plan.trunk, "arguments": hub.arguments}
    return write_folder(out, bundle, plan, parts, (document, hub.state_dict()), known)


def write_placed_classes(out: Path, bundle: Bundle, split: ClassSplit, plan: Plan) -> Placed:
    """Write the sub-models of a ViT that was split by classes, and the head that fuses them, as `write_placed` does.

    Args:
        out: The folder.
        bundle: Of the model that was split.
        split: Its sub-models and the head.
        plan: Which board holds which of them.

    Raises:
        SettingError: `out` holds something else, or the plan does not place each sub-model once.
    """
    _see_that_all_placed([index for share in plan.shares for index in share.submodels], range(len(split.submodels)))
    form = Form.from_json(bundle.document["model"])
    parts = [
        Part.of_submodels(
            share.board.name,
            form,
            {index: split.submodels[index] for index in share.submodels},
            preprocessing=bundle.preprocessing,
        )
        for share in plan.shares
    ]
    document = {"kind": "classes", "widths": split.fusion.widths, "num_classes": split.fusion.num_classes}
    return write_folder(out, bundle, plan, parts, (document, split.fusion.state_dict()), split.missing)


def write_folder(
    out: Path,
    bundle: Bundle,
    plan: Plan,
    parts: Sequence[Part],
    hub: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    known: Sequence[Missing],
) -> Placed:
    """Write parts and hub, whole or not at all: as `write_placed`, for whatever the hub computes."""
    _see_that_ours(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(PARTIAL + out.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        entries = [_write_part(partial, number, part) for number, part in enumerate(parts, start=1)]
        hub_document, tensors = hub
        write_tensors(partial / HUB, tensors, {"schema": SCHEMA, **hub_document})
        document = {
            "schema": SCHEMA,
            "anyvit": __version__,
            "plan": plan.to_json(),
            "classes": bundle.classes,
            "preprocessing": bundle.preprocessing.to_json(),
            "hub": {"sha256": _sha256(partial / HUB)},
            "parts": [asdict(entry) for entry in entries],
            "known": [asdict(entry) for entry in known],
        }
        write_text(partial / DOCUMENT, to_text(document))
        put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Placed.load(out)


def _write_part(folder: Path, number: int, part: Part) -> PlacedPart:
    name = f"part-{number}.safetensors"
    part.save(folder / name)
    return PlacedPart(part.board, name, _sha256(folder / name), part.hash, part.kind, part.members, part.gives)


def _see_that_all_placed(placed: Sequence[int], members: Sequence[int]) -> None:
    if sorted(placed) != list(members):
        raise SettingError(f"the plan places {sorted(placed)} and the model has {list(members)}: plan this model anew.")


def _see_that_ours(out: Path) -> None:
    """Only what an earlier `spread` has written is replaced."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    ours = {name for name in names if name in (DOCUMENT, HUB) or name.startswith(("part-", PARTIAL))}
    if names - ours:
        raise SettingError(f"{out} holds something else ({min(names - ours)}): name a new folder with --out.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / DOCUMENT
    if not path.is_file():
        raise BundleError(f"{folder} has no {DOCUMENT}: name the folder that `anyvit spread` has written.")
    with refuse_damaged(path, REMEDY):
        document = json.loads(path.read_bytes())
        schema = int(document["schema"])
    refuse_newer(path, schema, SCHEMA)
    return document
