"""One model over many devices: plan who holds what, know what it is worth with some missing, write a part for each."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anyvit.data import DataSet, Split, open_data
from anyvit.data.loading import evaluation_batches
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.spread.placed import write_placed, write_placed_classes
from anyvit.errors import DataError, ModelError, SettingError, unknown
from anyvit.models.hsvit import HSViT
from anyvit.models.hydravit import HydraViT
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.spread.boards import Fleet, read_fleet
from anyvit.scaling.spread.class_plan import plan_classes
from anyvit.scaling.spread.class_split import split_by_classes
from anyvit.scaling.spread.classes import deal_classes
from anyvit.scaling.spread.family import Family
from anyvit.scaling.spread.pace import macs_per_second
from anyvit.scaling.spread.plan import Plan, ranges
from anyvit.scaling.spread.planner import plan_groups
from anyvit.scaling.spread.sizes import HSViTShape
from anyvit.scaling.spread.vote import Missing, accuracy_by_missing
from anyvit.training.recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

WAYS = ("groups", "classes")
"""What a model is cut along."""

MOST_SETS = 1024
"""About how many sets of missing groups are looked at."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A plan, and where its parts lie.

    Attributes:
        bundle: The folder of the whole model.
        plan: Who holds what, and what is predicted.
        known: The accuracy with none, one, … of the groups, or sub-models, missing; empty where it is not known.
        out: The folder of the parts. None: nothing was written.
        notes: What a user should know.
    """

    bundle: str
    plan: Plan
    known: Sequence[Missing]
    out: str | None
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "plan": self.plan.to_json(),
            "known": [asdict(missing) for missing in self.known],
            "out": self.out,
            "notes": list(self.notes),
        }


def spread(
    bundle: str,
    *,
    devices: str,
    out: str | None = None,
    by: str = "groups",
    data: str | None = None,
    trunk: str = "auto",
    epochs: float | None = None,
    recipe: str | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = silent,
) -> Spread:
    """Plan a model over the boards of `devices.yaml`, and write the part of each.

    Args:
        bundle: The folder that `fit` has written.
        devices: The file that describes the boards: names, addresses, memory, speeds, links.
        out: The folder for the plan and the parts. None: only the plan, nothing is written.
        by: What is dealt: "groups", the attention groups of an HSViT; or "classes" of any plain ViT: each board gets
            some, and a smaller ViT for them, which is trained where `out` is given.
        data: Labelled images, to train on by classes, and to know the accuracy with parts missing. None: those of the
            run, where they still are.
        trunk: By groups: convolutions on the "hub", on all "boards", or "auto": whichever answers sooner.
        epochs: By classes, how often training sees each image. None: what the recipe says.
        recipe: By classes, a recipe by name, or a JSON or TOML file. None: fine-tune.
        seed: Everything random follows from it.
        threads: Threads of this machine, by whose speed boards without a cost table are judged.
        progress: Called with news.

    Raises:
        SpreadError: The boards cannot hold the model; the message names them and how much they lack.
        SettingError: A value outside its range, in `devices` too, or one that is not about what is dealt.
        ModelError: The model cannot be cut that way.
        BundleError: The bundle is damaged, newer than this AnyViT reads, or not one at all.
        DataError: `devices` or `data` cannot be read.
        Interrupted: Ctrl-C in training; the same call resumes.
    """
    if by not in WAYS:
        raise SettingError(unknown("way to spread", by, WAYS))
    given = {"trunk": trunk != "auto", "epochs": epochs is not None, "recipe": recipe is not None}
    strange = [name for name in (("epochs", "recipe") if by == "groups" else ("trunk",)) if given[name]]
    if strange:
        raise SettingError(f"{strange[0]} says nothing where a model is spread by {by}: leave it out.")
    job = _Job(Bundle.load(bundle), read_fleet(devices), Path(out) if out else None, data, seed, threads, progress)
    plan, known, notes = job.by_groups(trunk) if by == "groups" else job.by_classes(epochs, recipe)
    return Spread(str(bundle), plan, known, out, notes)


Found = tuple[Plan, Sequence[Missing], Sequence[str]]
"""The plan, the accuracies known, and what there is to say."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for both ways; the fields are arguments of `spread`, opened."""

    bundle: Bundle
    fleet: Fleet
    out: Path | None
    data: str | None
    seed: int
    threads: int
    progress: Progress

    def by_groups(self, trunk: str) -> Found:
        model = self.bundle.model()
        if not isinstance(model, HSViT):
            raise ModelError(
                f"{self.bundle.folder} holds a {type(model).__name__}, which has no attention groups: spread it by "
                "classes (--by classes), or train an HSViT (--model hsvit_c3a4_32)."
            )
        has_tables = all(board.cost_table for board in (*self.fleet.boards, self.fleet.hub))
        pace = math.inf if has_tables else self.pace(model)
        plan = plan_groups(HSViTShape.of(model.arguments), self.fleet, pace, trunk=trunk)
        words = f"{len(plan.shares)} of {len(self.fleet.boards)} boards take part, trunk on the {plan.trunk}"
        self.progress(Event("plan", words))
        known, notes = self.known(model)
        if self.out:
            write_placed(self.out, self.bundle, model, plan, known=known)
        return plan, known, notes

    def by_classes(self, epochs: float | None, recipe: str | None) -> Found:
        """A sub-model a board, or a class where there are fewer."""
        model, classes = self.bundle.model(), len(self.bundle.classes)
        if isinstance(model, HydraViT):
            model = model.extract(model.num_heads)
        groups = deal_classes(classes, min(len(self.fleet.boards), classes))
        family = Family.of_model(model)
        placement = plan_classes(family, groups, self.fleet, self.pace(model))
        self.progress(Event("plan", f"{len(groups)} sub-models of {ranges(sorted(set(placement.heads)))} heads"))
        if self.out is None:
            return placement.plan, (), ("what sub-models are worth is known once they are trained: name --out.",)
        folder = self.out.with_name(f"{self.out.name}.training")
        split = split_by_classes(
            model,
            self.labelled(),
            groups,
            placement.heads,
            preprocessing=self.bundle.preprocessing,
            recipe=find_recipe(recipe or "fine-tune", RECIPES["fine-tune"]),
            folder=folder,
            epochs=epochs,
            seed=self.seed,
            progress=self.progress,
        )
        write_placed_classes(self.out, self.bundle, split, placement.plan)
        shutil.rmtree(folder)
        return placement.plan, split.missing, ()

    def pace(self, model: nn.Module) -> float:
        self.progress(Event("measure", "the speed of this machine"))
        return macs_per_second(model, threads=self.threads, progress=self.progress)

    def labelled(self) -> DataSet:
        """The data of the run, split as then, or others of the same classes."""
        about = self.bundle.document["data"]
        opened = open_data(self.data or about["source"], seed=about["seed"], progress=self.progress)
        if opened.classes != self.bundle.classes:
            raise DataError(
                f"{opened.source} has the classes {', '.join(opened.classes)}, and the model "
                f"{', '.join(self.bundle.classes)}: name images of the same classes."
            )
        return opened

    def known(self, model: HSViT) -> tuple[Sequence[Missing], Sequence[str]]:
        """The accuracy with groups missing, on validation images, and what there is to say about it."""
        try:
            split = self.labelled().splits["val"]
        except DataError as error:
            if self.data:
                raise
            return (), (f"what it is worth with groups missing is not known: {error} Name labelled images: --data.",)
        votes, labels = self.votes(model, split)

        def score(kept: Sequence[int]) -> float:
            with torch.inference_mode():
                answers = model.forward_head(votes[:, list(kept)]).argmax(dim=1)
            return (answers == labels).double().mean().item()

        groups = len(model.groups)
        return accuracy_by_missing(groups, score, seed=self.seed, sets=max(1, MOST_SETS // groups)), ()

    def votes(self, model: HSViT, split: Split) -> tuple[Tensor, Tensor]:
        """Class tokens (N, G, D) and labels (N,): what any set of groups answers is the head of a mean of some."""
        votes, labels, done = [], [], 0
        for images, truth in evaluation_batches(split, self.bundle.preprocessing):
            with torch.inference_mode():
                votes.append(model.forward_features(images))
            labels.append(truth)
            done += len(truth)
            self.progress(Event("score", "the vote of every group", done=done / len(split)))
        return torch.cat(votes), torch.cat(labels)
