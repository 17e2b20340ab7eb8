"""The folder that a run leaves: weights, `bundle.json`, and what the candidates cannot be rebuilt from.

`bundle.json` names every other file together with its SHA-256, and is renamed into place last; the names of the
others contain their digest, so that writing a bundle anew never touches a file of the one that is there. A crash at
any moment leaves either the old bundle or the new one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import safetensors.torch

from anyvit import __version__
from anyvit.backends import backend_named
from anyvit.costs.budget import Bound, Budget, format_cost
from anyvit.costs.device import this_device
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.document import DOCUMENT, REMEDY, SCHEMA, read_document, read_listed, to_text
from anyvit.errors import BudgetError, BundleError, SettingError, unknown
from anyvit.files import PARTIAL, put_in_place, remove_partial, write_file, write_text
from anyvit.protocols import Runner
from anyvit.scaling.candidate import Candidate, Result, candidate_from_json
from anyvit.scaling.cascade import assemble
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.search import TIMED, choose, closest, margin_of, within
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import Tensor, nn

TUNED = "tuned.safetensors"
"""The weights of a tuned candidate, beside what its backend keeps."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that was read and found whole; the weights are read, and checked, when they are first asked for.

    Attributes:
        folder: Where it lies.
        document: The content of `bundle.json`.
    """

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Read `bundle.json` and see that all it names is there.

        Raises:
            BundleError: The folder is no bundle, a file is missing or damaged, or a newer AnyViT wrote it.
        """
        bundle = cls(Path(folder), read_document(Path(folder)))
        for name in bundle._digests():
            if not (bundle.folder / name).is_file():
                raise BundleError(f"{bundle.folder / name} is missing. {REMEDY}")
        with bundle._blaming_versions(), bundle._blaming_document():
            _ = bundle.classes, bundle.preprocessing, bundle.conditions, bundle.results
        bundle.result(bundle.document["chosen"])
        return bundle

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return tuple(self.document["classes"])

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What turns an image into the model's input."""
        return Preprocessing.from_json(self.document["preprocessing"])

    @cached_property
    def conditions(self) -> Conditions:
        """Image size, batch and threads that the timings hold for."""
        return Conditions(**self.document["conditions"])

    @cached_property
    def results(self) -> tuple[Result, ...]:
        """Every candidate with its figures."""
        return tuple(Result.from_json(result) for result in self.document["candidates"])

    @property
    def chosen(self) -> Result:
        """The candidate that answers where no budget is named."""
        return self.result(self.document["chosen"])

    @property
    def measured_here(self) -> bool:
        """Whether the figures come from this machine as it is now; elsewhere they are unproven."""
        device = self.document["device"]
        return this_device(device["kind"]).fingerprint == device["fingerprint"]

    @property
    def accuracy_device(self) -> str:
        """The fingerprint of the device that the accuracies were measured on."""
        return self.document.get("accuracy_device", self.document["device"]["fingerprint"])

    def accuracy_holds(self, result: Result) -> bool:
        """Whether the accuracy of a candidate is that of this machine: in float32, or measured here.

        Shorter numbers are rounded in other ways elsewhere, by other instructions or other versions.
        """
        exact = all(part.backend.setting.get("precision", "float32") == "float32" for part in result.candidate.parts)
        return exact or self.accuracy_device == this_device(self.document["device"]["kind"]).fingerprint

    def result(self, id: str) -> Result:
        """The candidate of that id.

        Raises:
            BundleError: There is none.
        """
        by_id = {result.id: result for result in self.results}
        if id not in by_id:
            raise BundleError(f"{self.folder / DOCUMENT}: {unknown('candidate', id, by_id)}")
        return by_id[id]

    def pick(self, budget: str | Budget | None) -> Result:
        """The most accurate candidate (in validation) inside the budget; without a budget the chosen one.

        Raises:
            BudgetError: None is inside, or none was measured for a cost named; the message gives the closest.
        """
        wanted = Budget.parse(budget)
        if not wanted.bounds:
            return self._with_warning(self.chosen)
        return self._with_warning(choose(self.inside(wanted), wanted))

    def inside(self, budget: str | Budget | None) -> list[Result]:
        """All candidates inside the budget, in the order of the bundle.

        Raises:
            BudgetError: As `pick`.
        """
        wanted = Budget.parse(budget)
        self._see_that_known(wanted)
        able = [result for result in self.results if within(result, wanted)]
        if not able:
            raise BudgetError(self._miss(closest(self.results, wanted), wanted.cost_bounds()))
        accuracy = wanted.accuracy_bound()
        good = [result for result in able if not accuracy or accuracy.met_by(result.accuracy or 0.0)]
        if accuracy and not good:
            raise BudgetError(self._miss(choose(able, wanted), [accuracy]))
        return good

    def model(self) -> nn.Module:
        """The model in evaluation mode, with its weights: read once, and shared by all runners.

        Raises:
            BundleError: The weights are damaged, or do not fit the model that `bundle.json` names.
        """
        return self._model

    def runner(self, result: Result | None = None) -> Runner:
        """The runner of a candidate, of the chosen one by default.

        Raises:
            BundleError: The candidate cannot be rebuilt.
        """
        return assemble((result or self.chosen).candidate, self._part)

    def shaped(self, candidate: Candidate) -> nn.Module:
        """The model in a candidate's shape, in evaluation mode: with the weights of all, or its own where it was tuned.

        Raises:
            BundleError: The candidate cannot be rebuilt.
        """
        model = self.model()
        with self._blaming_versions(), self._blaming_document():
            return Workshop(model, self.conditions.example(), tuned=self._tuned(candidate)).shape(candidate)

    def _part(self, candidate: Candidate) -> Runner:
        shape, setting = self.shaped(candidate), candidate.backend.setting
        artefact = self.document["artefacts"].get(candidate.id, {"files": {}})
        kept = {name: digest for name, digest in artefact["files"].items() if name != TUNED}
        for name, digest in kept.items():
            self._read(f"{artefact['folder']}/{name}", digest)
        with self._blaming_versions():
            backend = backend_named(candidate.backend.name)
            if kept:
                return backend.load(shape, setting, self.folder / artefact["folder"])
            return backend.prepare(shape, setting, self.conditions.example())

    def rewrite(self, document: Mapping[str, Any]) -> Bundle:
        """The bundle with other figures in `bundle.json`, which names the same files as before."""
        write_text(self.folder / DOCUMENT, to_text(document))
        return Bundle.load(self.folder)

    def training_images(self) -> frozenset[int]:
        """Content hashes of the images that training or choosing has seen.

        Raises:
            BundleError: The file is damaged.
        """
        part = self.document["data"]["training_images"]
        tensors = safetensors.numpy.load(self._read(part["file"], part["sha256"]))
        return frozenset(int(value) for value in tensors["hashes"])

    @cached_property
    def _model(self) -> nn.Module:
        part = self.document["weights"]
        self._read(part["file"], part["sha256"])
        # mapped, not copied: processes that answer with one bundle share its pages
        weights = safetensors.torch.load_file(self.folder / part["file"])
        with self._blaming_versions(), self._blaming_document():
            model = Form.from_json(self.document["model"]).build()
            model.load_state_dict(weights, assign=True)
        return model.eval()

    def _tuned(self, candidate: Candidate) -> dict[str, dict[str, Tensor]]:
        if not candidate.tuned:
            return {}
        artefact = self.document["artefacts"][candidate.id]
        content = self._read(f"{artefact['folder']}/{TUNED}", artefact["files"][TUNED])
        return {candidate.id: safetensors.torch.load(content)}

    def _digests(self) -> dict[str, str]:
        """The SHA-256 of every file that belongs to the bundle, by its path in the folder."""
        with self._blaming_document():
            parts = [self.document["weights"], self.document["data"]["training_images"]]
            digests = {part["file"]: part["sha256"] for part in parts}
            for artefact in self.document["artefacts"].values():
                digests |= {f"{artefact['folder']}/{name}": digest for name, digest in artefact["files"].items()}
        return digests

    def _read(self, name: str, digest: str) -> bytes:
        return read_listed(self.folder / name, digest, DOCUMENT, REMEDY)

    @contextmanager
    def _blaming_versions(self) -> Iterator[None]:
        """What `bundle.json` names and nobody here knows comes from another version."""
        try:
            yield
        except SettingError as error:
            writer = self.document.get("anyvit")
            raise BundleError(
                f"{self.folder / DOCUMENT}, by AnyViT {writer}, cannot be used by {__version__}: {error}"
            ) from error

    @contextmanager
    def _blaming_document(self) -> Iterator[None]:
        """Missing and ill-formed values are the fault of `bundle.json`."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            words = f"{type(error).__name__}: {error}"
            raise BundleError(f"{self.folder / DOCUMENT} is damaged ({words}). {REMEDY}") from error

    def _see_that_known(self, budget: Budget) -> None:
        bounds = budget.cost_bounds()
        for bound in bounds:
            known = set.intersection(*(set(result.costs) for result in self.results))
            if bound.cost not in known:
                raise BudgetError(
                    f"{bound}: {self.folder} holds no figures for {bound.cost}. It holds: {', '.join(sorted(known))}."
                )
        if any(bound.cost in TIMED for bound in bounds) and not self.measured_here:
            warnings.warn(
                f"the timings of {self.folder} were taken on another device or with other versions: unproven here "
                f"until `anyvit measure {self.folder}`",
                stacklevel=5,
            )

    def _with_warning(self, picked: Result) -> Result:
        if not self.accuracy_holds(picked):
            warnings.warn(
                f"the accuracy of {picked.id} was measured on another device or with other versions: unproven here "
                f"until `anyvit measure {self.folder} --data IMAGES`",
                stacklevel=3,
            )
        return picked

    def _miss(self, nearest: Result, bounds: Sequence[Bound]) -> str:
        figures = {**nearest.costs, "accuracy": nearest.accuracy or 0.0}
        missed = [bound for bound in bounds if not bound.met_by(figures[bound.cost], margin_of(bound.cost))]
        words = [f"{bound} by {_excess(bound, figures[bound.cost])}" for bound in missed]
        spare = " (timings count with 5% to spare)" if any(bound.cost in TIMED for bound in missed) else ""
        by_how_much = f"the closest, {nearest.id}, misses {', '.join(words)}{spare}."
        return f"no candidate of {self.folder} meets the budget; {by_how_much}"


def _excess(bound: Bound, value: float) -> str:
    share = abs(value * margin_of(bound.cost) / bound.value - 1)
    return f"{share:.1%} ({format_cost(bound.cost, value)})"


def write_bundle(
    folder: str | Path,
    *,
    model: nn.Module,
    document: Mapping[str, Any],
    training_images: Iterable[int],
    runners: Mapping[str, Runner] = MappingProxyType({}),
    tuned: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> Bundle:
    """Write a bundle, in the place of what stood in `folder`; a crash leaves that or the new one, both whole.

    Args:
        folder: Where to; made where it is not there.
        model: What `document["model"]` describes, trained.
        document: The content of `bundle.json`, but for what is known here: schema, version, files and digests.
        training_images: Content hashes of the images that training or choosing has seen.
        runners: Runners by candidate id, for the backends to save what they need not build again.
        tuned: By candidate id the weights of its shape, for every one that is tuned.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    hashes = {"hashes": np.fromiter(training_images, dtype=np.uint64)}
    complete = {
        "schema": SCHEMA,
        "anyvit": __version__,
        **document,
        "weights": _write_named(folder, "weights", _to_bytes(model.state_dict())),
        "data": {
            **document["data"],
            "training_images": _write_named(folder, "training-images", safetensors.numpy.save(hashes)),
        },
        "artefacts": _save_candidates(folder, document["candidates"], runners, tuned),
    }
    write_text(folder / DOCUMENT, to_text(complete))
    bundle = Bundle.load(folder)
    _remove_older(folder, bundle._digests())
    return bundle


def _to_bytes(state: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def _write_named(folder: Path, kind: str, content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    name = f"{kind}-{digest[:12]}.safetensors"
    write_file(folder / name, content)
    return {"file": name, "sha256": digest}


def _save_candidates(
    folder: Path,
    candidates: Sequence[Mapping[str, Any]],
    runners: Mapping[str, Runner],
    tuned: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, dict[str, Any]]:
    parts = {part.id: part for candidate in candidates for part in candidate_from_json(candidate).parts}
    assert all(id in tuned for id, part in parts.items() if part.tuned)
    artefacts = {}
    for id in {**runners, **tuned}:
        partial = folder / f"{PARTIAL}{id}"
        partial.mkdir()
        if id in tuned:
            (partial / TUNED).write_bytes(_to_bytes(tuned[id]))
        if id in runners:
            backend_named(parts[id].backend.name).save(runners[id], partial)
        files = _digests_in(partial)
        if not files:
            partial.rmdir()
            continue
        target = folder / "candidates" / id / hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
        target.parent.mkdir(parents=True, exist_ok=True)
        if _digests_in(target) == files:
            shutil.rmtree(partial)
        else:
            put_in_place(partial, target)
        artefacts[id] = {"folder": target.relative_to(folder).as_posix(), "files": files}
    return artefacts


def _digests_in(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _remove_older(folder: Path, belonging: Iterable[str]) -> None:
    """Remove weights, image lists and artefacts that no longer belong to the bundle."""
    keep = {folder / name for name in belonging}
    for pattern in ("weights-*.safetensors", "training-images-*.safetensors", "candidates/*/*/**/*"):
        for path in folder.glob(pattern):
            if path.is_file() and path not in keep:
                path.unlink()
    for path in sorted(folder.glob("candidates/**/"), reverse=True):  # the innermost first
        if not any(path.iterdir()):
            path.rmdir()
