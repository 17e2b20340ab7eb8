"""What a server may answer with: the candidates of a bundle, or the one that boards are together, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.spread.placed import Placed, is_placed
from anyvit.errors import BudgetError, SettingError, unknown
from anyvit.scaling.candidate import Result
from anyvit.scaling.search import TIMED, pareto

CLOSE = 1.5
"""A candidate that needs so many times as long for one image as one as accurate may still carry more, in batches."""


class Menu:
    """Candidates with their figures, from the most to the least accurate.

    Args:
        source: The bundle, or placed folder.
        results: Those that are offered.
        withheld: By id, why a candidate of the source is not.
        min_accuracy: That was asked for.

    Attributes:
        timed_here: Whether the latencies are of this machine.
    """

    def __init__(
        self,
        source: Bundle | Placed,
        results: Sequence[Result],
        withheld: Mapping[str, str],
        min_accuracy: float | None = None,
    ) -> None:
        self.source, self.min_accuracy = source, min_accuracy
        self.results = tuple(sorted(results, key=lambda result: -(result.accuracy or 0.0)))
        self.withheld = dict(withheld)
        self.timed_here = isinstance(source, Bundle) and source.measured_here
        self.allowed = lru_cache(maxsize=256)(self._allowed)

    @classmethod
    def open(
        cls, folder: str | Path, candidates: Sequence[str] | None = None, min_accuracy: float | None = None
    ) -> Menu:
        """Those of a folder that may be worth serving: no other one beats them in accuracy and, by far, in latency.

        Args:
            folder: A bundle, or a folder placed on boards.
            candidates: Ids: these instead.
            min_accuracy: None below this accuracy, on the validation images.

        Raises:
            BundleError: The folder is damaged, or neither of the two.
            SettingError: An unknown id.
            BudgetError: None is as accurate as that.
        """
        source = Placed.load(folder) if is_placed(folder) else Bundle.load(folder)
        results = {result.id: result for result in ((source.result,) if isinstance(source, Placed) else source.results)}
        withheld: dict[str, str] = {}
        if candidates is not None:
            for id in candidates:
                if id not in results:
                    raise SettingError(unknown("candidate", id, results))
            withheld |= {id: "not among the --candidates" for id in results if id not in candidates}
        else:
            beaten = {id for id, result in results.items() if any(_beats(other, result) for other in results.values())}
            withheld |= dict.fromkeys(beaten, f"another one is as accurate, and {CLOSE:g} times as fast or more")
        if min_accuracy is not None:
            inaccurate = {id for id, r in results.items() if id not in withheld and (r.accuracy or 0) < min_accuracy}
            withheld |= dict.fromkeys(
                inaccurate, f"below the accuracy of {min_accuracy:.1%} that --min-accuracy asks for"
            )
        offered = [result for id, result in results.items() if id not in withheld]
        if not offered:
            best = max(result.accuracy or 0.0 for result in results.values())
            raise BudgetError(
                f"no candidate of {folder} has an accuracy of {min_accuracy:.1%}: the best has {best:.1%}. "
                "Lower --min-accuracy, or serve another bundle."
            )
        return cls(source, offered, withheld, min_accuracy)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.source.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns an image into pixels."""
        return self.source.preprocessing

    @property
    def accuracies(self) -> dict[str, float]:
        """Of each candidate that is offered, where it is known."""
        return {result.id: result.accuracy for result in self.results if result.accuracy is not None}

    def by_need(self) -> list[str]:
        """Ids, those first that the server misses most: the most accurate, the fastest, others that none beats."""
        fastest = min(self.results, key=lambda result: result.costs.get("latency", 0.0))
        front = reversed(pareto([result for result in self.results if "latency" in result.costs], "latency"))
        needed = [self.results[0], fastest, *front, *self.results]
        return list(dict.fromkeys(result.id for result in needed))

    def without(self, withheld: Mapping[str, str]) -> Menu:
        """The menu less some candidates, and why."""
        left = [result for result in self.results if result.id not in withheld]
        menu = Menu(self.source, left, {**self.withheld, **withheld}, self.min_accuracy)
        menu.timed_here = self.timed_here
        return menu

    def timed(self, latencies: Mapping[str, float]) -> Menu:
        """The menu with latencies measured just now, in the place of timings from another machine, or of plans."""
        if self.timed_here:
            return self

        def renewed(result: Result) -> Result:
            counted = {cost: value for cost, value in result.costs.items() if cost not in TIMED}
            return replace(result, costs={**counted, "latency": latencies[result.id]}, unstable=False)

        menu = Menu(self.source, [renewed(result) for result in self.results], self.withheld, self.min_accuracy)
        menu.timed_here = True
        return menu

    def _allowed(self, budget: str) -> frozenset[str] | None:
        """Ids of the candidates inside a budget; None: all. (`allowed` remembers.)

        Raises:
            SettingError: The budget cannot be read.
            BudgetError: None is inside.
        """
        wanted = Budget.parse(budget)
        if not wanted.bounds:
            return None
        if isinstance(self.source, Placed):
            raise SettingError("a model on boards is one candidate: leave the budget out.")
        device = this_device(self.source.document["device"]["kind"])
        document = {
            **self.source.document,
            "candidates": [result.to_json() for result in self.results],
            "device": {**asdict(device), "fingerprint": device.fingerprint},  # as they were timed here
        }
        return frozenset(result.id for result in replace(self.source, document=document).inside(wanted))

    def to_json(self) -> dict[str, Any]:
        """Of `/v1/model`, without what only the server knows."""
        source = self.source
        all_results = (source.result,) if isinstance(source, Placed) else source.results
        known = {result.id: result for result in (*all_results, *self.results)}
        ranked = sorted(known.values(), key=lambda result: -(result.accuracy or 0.0))
        return {
            "task": source.document.get("task", "classification"),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            "min_accuracy": self.min_accuracy,
            "measured_here": self.timed_here,
            "device": str(this_device()),
            "candidates": [
                {
                    "id": result.id,
                    "accuracy": result.accuracy,
                    "costs": dict(result.costs),
                    "served": result.id not in self.withheld,
                    "why": self.withheld.get(result.id),
                }
                for result in ranked
            ],
        }


def _beats(other: Result, result: Result) -> bool:
    """Is it as accurate, and faster by far?"""
    nowhere = float("nan")  # is neither faster nor slower, better nor worse
    by_far = CLOSE * other.costs.get("latency", nowhere) <= result.costs.get("latency", nowhere)
    return by_far and (other.accuracy or 0.0) >= (result.accuracy or 0.0)
