"""What the report says about a search: what each lever gave, what was tried and left, how to have the winner again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyvit.deploy.bundle import Bundle
from anyvit.scaling.candidate import Cascade, Result

UNSHRUNK, SEVERAL, CASCADE = "no lever", "several levers", "cascade"


def family(result: Result) -> str:
    """What a candidate is made with, in a word or two: the name of its one lever, or one of the three above."""
    if isinstance(result.candidate, Cascade):
        return CASCADE
    levers = levers_of(result)
    return UNSHRUNK if not levers else levers[0] if len(levers) == 1 else SEVERAL


def levers_of(result: Result) -> tuple[str, ...]:
    """The names of the levers that change something, each once."""
    return tuple(dict.fromkeys(step.name for part in result.candidate.parts for step in part.active))


def runtime(result: Result) -> str:
    """The name of the runtime; of a cascade there may be two."""
    return " + ".join(dict.fromkeys(part.backend.name for part in result.candidate.parts))


@dataclass(frozen=True, slots=True)
class Left:
    """A candidate that was tried and left.

    Attributes:
        result: Its figures; the accuracy is of a quick look.
        why: The reason.
        macs: How many times as much the unshrunk model on the same runtime needs; None where that is not known.
        time: The same of latency. Of the unshrunk model itself, both are held against PyTorch in float32.
    """

    result: Result
    why: str
    macs: float | None
    time: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """A figure, and how it differs from that of the chosen candidate: a ratio of costs, or a difference of shares."""

    value: float
    by: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """The chosen candidate with one thing taken away.

    Attributes:
        without: What was taken away, in words.
        id: The candidate that is left.
        latency: What that one needs.
        macs: Likewise.
        accuracy: Of the quick look; None where there was none.
    """

    without: str
    id: str
    latency: Change
    macs: Change
    accuracy: Change | None


class Findings:
    """What a search found, as the report tells it.

    Args:
        bundle: One whose `bundle.json` has the key `search`.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.search: Mapping[str, Any] = bundle.document["search"]
        self.kept, self.chosen = bundle.results, bundle.chosen
        self.tried = [(Result.from_json(data), str(data["why"])) for data in self.search["tried"]]

    def left(self) -> list[Left]:
        """What was tried and left, the fastest first, what was never timed last."""
        everything = [*self.kept, *(result for result, _ in self.tried)]
        unshrunk = {_runtimes(result): result for result in everything if family(result) == UNSHRUNK}
        eager = next((result for result in unshrunk.values() if _is_exact(result)), None)

        def gain(result: Result, cost: str) -> float | None:
            base = eager if family(result) == UNSHRUNK else unshrunk.get(_runtimes(result))
            if base is None or base is result or cost not in base.costs or cost not in result.costs:
                return None
            return base.costs[cost] / result.costs[cost]

        ordered = sorted(self.tried, key=lambda each: each[0].costs.get("latency", float("inf")))
        return [Left(result, why, gain(result, "macs"), gain(result, "latency")) for result, why in ordered]

    def itself(self) -> Mapping[str, Any]:
        """The chosen candidate, of a cascade its large part, as it was measured beside those without a part of it."""
        known = {"id": self.chosen.id, "accuracy": self.chosen.accuracy, **self.chosen.costs}
        return next((data for data in self.search["contributions"] if data["without"] is None), known)

    def contributions(self) -> list[Contribution]:
        """What is lost without each lever and the runtime, the greatest loss of time first."""
        itself = self.itself()

        def accuracy(value: float | None) -> Change | None:
            known = itself["accuracy"]
            return None if value is None or known is None else Change(value, value - known)

        runtime_words = f"{_runtimes(self.chosen)[-1]}, in PyTorch and float32"
        return [
            Contribution(
                data["without"] if data["without"] in levers_of(self.chosen) else runtime_words,
                data["id"],
                Change(data["latency"], data["latency"] / itself["latency"]),
                Change(data["macs"], data["macs"] / itself["macs"]),
                accuracy(data["accuracy"]),
            )
            for data in sorted(self.search["contributions"], key=lambda data: -data["latency"])
            if data["without"] is not None
        ]

    def in_view(self, cost: str) -> list[Result]:
        """What was tried and left, without those so far off that the kept ones would crowd in a corner beside them."""
        scored = [result for result in self.kept if result.accuracy is not None]
        if not scored:
            return []
        values = [result.costs[cost] for result in scored]
        shares = [result.accuracy or 0.0 for result in scored]
        lowest = min(shares) - max(max(shares) - min(shares), 0.02)
        cheapest, dearest = min(values) / 2, 2 * max(values)
        return [
            result
            for result, _ in self.tried
            if (result.accuracy or 0.0) >= lowest and cheapest <= result.costs.get(cost, 0.0) <= dearest
        ]

    def tuning(self) -> dict[str, Any] | None:
        """What tuning did, with whether its weights were kept and whether they answer; None where there was none."""
        if (tuning := self.search.get("tuning")) is None:
            return None
        tuned = [result for result in self.kept if any(part.tuned for part in result.candidate.parts)]
        return {**tuning, "kept": bool(tuned), "answers": self.chosen in tuned}


def _runtimes(result: Result) -> tuple[str, ...]:
    """The runtimes with their settings, in words, each once."""
    backends = (part.backend for part in result.candidate.parts)
    return tuple(
        dict.fromkeys(f"{backend.name} {backend}" if backend.setting else backend.name for backend in backends)
    )


def _is_exact(result: Result) -> bool:
    return all(
        part.backend.name == "torch" and "precision" not in part.backend.setting for part in result.candidate.parts
    )


def recipe(bundle: Bundle) -> dict[str, str]:
    """What it takes to have the winner again: commands, the candidate as data, and a few lines of Python."""
    document, conditions = bundle.document, bundle.conditions
    device, data = document["device"], document["data"]
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items() if name != "anyvit")
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in data["digests"].items())
    threads = f"{conditions.threads} thread{'s' * (conditions.threads > 1)}"
    notes = [
        f"AnyViT {document['anyvit']}, {versions}; seed {data['seed']}",
        f"{device['processor']}, {device['cores']} cores, {device['kind']} ({device['fingerprint']}); "
        f"{threads}, batch {conditions.batch}, {conditions.image_size} px",
        f"images: {digests}",
    ]
    commands = [f"# {' '.join(note.split())}" for note in notes] + [document["command"]]
    python = textwrap.dedent(f"""\
        import anyvit

        model = anyvit.load({str(bundle.folder)!r})
        print(model.predict("image.jpg"))  # the winner answers

        winner = model.bundle.result({bundle.chosen.id!r})
        runner = model.bundle.runner(winner)  # preprocessed images (B, 3, H, W) in, probabilities out""")
    candidate = json.dumps(bundle.chosen.candidate.to_json(), indent=1)
    return {"commands": "\n".join(commands), "candidate": candidate, "python": python}
