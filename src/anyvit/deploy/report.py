"""`report.html`: what a run has found, on one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from anyvit.costs.budget import Bound, Budget, format_cost
from anyvit.data import Split
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.plots import pareto_plot, search_plot, training_plot
from anyvit.deploy.prediction import Prediction
from anyvit.deploy.runtime import Predictor
from anyvit.deploy.search_report import Findings, recipe
from anyvit.deploy.token_pictures import token_pictures
from anyvit.files import write_text
from anyvit.scaling.candidate import Result, costs_of
from anyvit.scaling.search import TIMED, pareto

REPORT = "report.html"
SAMPLES = 12
"""Pictures in a report, up to half of them answered wrong."""

TOKEN_PICTURES = 4
"""Samples whose tokens are followed."""

_ASKED = 400  # test images that the samples are chosen from
_THUMBNAIL = 160  # pixels of the longer side
_NO_BREAK = "\N{NO-BREAK SPACE}"
_MOST_CLASSES = 20  # beyond, a confusion matrix is a list


@dataclass(frozen=True, slots=True)
class Sample:
    """A test image and what was said about it."""

    image: Image.Image
    truth: str
    answer: str
    probability: float

    @property
    def right(self) -> bool:
        return self.truth == self.answer

    @property
    def uri(self) -> str:
        """The image as a thumbnail that a page can hold."""
        small, file = self.image.copy(), io.BytesIO()
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        tiny = max(small.size) <= 64  # JPEG would smear the few pixels there are
        small.save(file, "PNG" if tiny else "JPEG", **({} if tiny else {"quality": 82}))
        return f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def samples_of(bundle: Bundle, split: Split) -> list[Sample]:
    """A dozen images of `split` as the chosen candidate answers them: the surest mistakes, and right ones."""
    chosen = np.linspace(0, len(split) - 1, min(_ASKED, len(split))).round().astype(np.int64).tolist()
    named = ((str(index), lambda index=index: split.images.load(index)) for index in chosen)
    answers = [a for a in Predictor(bundle).answers(named, batch_size=16) if a.error is None]
    wrong = [a for a in answers if a.label != bundle.classes[split.labels[int(a.name)]]]
    wrong = sorted(wrong, key=lambda a: -(a.probability or 0.0))[: SAMPLES // 2]
    right = [a for a in answers if a.label == bundle.classes[split.labels[int(a.name)]]]
    spread = np.linspace(0, len(right) - 1, min(SAMPLES - len(wrong), len(right))).round().astype(int)

    def sample(answer: Prediction) -> Sample:
        index = int(answer.name)
        truth = bundle.classes[split.labels[index]]
        return Sample(split.images.load(index), truth, answer.label or "", answer.probability or 0.0)

    return [sample(answer) for answer in [*wrong, *(right[place] for place in spread)]]


def write_report(bundle: Bundle, samples: Sequence[Sample] = ()) -> Path:
    """Write `report.html` into a bundle: the answer, how it was chosen, and what it is worth.

    Args:
        bundle: What to report on. What it does not hold yet (tests, promises) is said to be open.
        samples: Pictures to show.

    Returns:
        The file.
    """
    write_page(bundle.folder / REPORT, "report.html.j2", _content(bundle, samples))
    return bundle.folder / REPORT


def write_page(file: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page that needs nothing but itself, from one of the templates."""
    environment = Environment(
        loader=PackageLoader("anyvit.deploy"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cost": _cost, "share": _share, "times": _times, "points": _points}
    write_text(file, environment.get_template(template).render(content))


def _content(bundle: Bundle, samples: Sequence[Sample]) -> dict[str, Any]:
    document = bundle.document
    budget = Budget.parse(document["run"].get("budget"))
    bounds = budget.cost_bounds()
    bound = next((bound for bound in bounds if bound.cost in TIMED), bounds[0] if bounds else None)
    cost = bound.cost if bound else "latency"
    front = [result.id for result in pareto(bundle.results, cost)]
    training = training_plot(document["history"])
    findings = Findings(bundle) if document.get("search") else None
    in_view = findings.in_view(cost) if findings else []
    if findings:
        picture = search_plot(bundle.results, in_view, front, bundle.chosen, cost, budget)
    else:
        picture = pareto_plot(bundle.results, front, bundle.chosen, cost, bound)
    return {
        "bundle": bundle,
        "document": document,
        "budget": budget,
        "test": document["test"],
        "promise": document["promise"],
        "chosen": bundle.chosen,
        "front": front,
        "tiles": _tiles(bundle),
        "columns": costs_of(bundle.results),
        "outside": {(result.id, b.cost) for result in bundle.results for b in budget.bounds if _misses(result, b)},
        "pareto": Markup(picture),
        "training": training and Markup(training),
        "classes": _by_recall(document["test"]),
        "matrix": _matrix(bundle),
        "confusions": _confusions(bundle),
        "samples": samples,
        "search": findings and findings.search,
        **(_searched(bundle, findings, in_view, samples) if findings else {}),
    }


def _searched(
    bundle: Bundle, findings: Findings, in_view: Sequence[Result], samples: Sequence[Sample]
) -> dict[str, Any]:
    """What a page tells beside the rest where there was a search."""
    left = findings.left()
    some = [samples[place] for place in np.linspace(0, len(samples) - 1, min(TOKEN_PICTURES, len(samples))).astype(int)]
    return {
        "in_view": in_view,
        "out_of_view": sum(each.result.accuracy is not None for each in left) - len(in_view),
        "contributions": findings.contributions(),
        "itself": findings.itself(),
        "tuning": findings.tuning(),
        "left": left,
        "pictures": list(zip(some, token_pictures(bundle, [sample.image for sample in some]), strict=False)),
        "recipe": recipe(bundle),
    }


def _misses(result: Result, bound: Bound) -> bool:
    value = result.accuracy if bound.cost == "accuracy" else result.costs.get(bound.cost)
    return value is not None and not bound.met_by(value)


def _tiles(bundle: Bundle) -> list[tuple[str, str]]:
    """The few figures that stand at the top, with their names."""
    costs = bundle.chosen.costs
    wanted = {"latency": "latency", "params": "parameters", "size": "weights", "macs": "MACs"}
    return [(format_cost(cost, costs[cost]), name) for cost, name in wanted.items() if cost in costs]


def _by_recall(test: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Classes with their scores, those most in need of attention first; classes without images last."""
    if test is None:
        return []
    return sorted(test["classes"].items(), key=lambda item: (item[1]["recall"] is None, item[1]["recall"] or 0.0))


def _matrix(bundle: Bundle) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """A row a true class: counts of the answers and their share of the row; None where there are too many classes."""
    test = bundle.document["test"]
    if test is None or len(bundle.classes) > _MOST_CLASSES:
        return None
    rows = zip(bundle.classes, test["confusion"], strict=True)
    return [(name, [(count, count / max(1, sum(row))) for count in row]) for name, row in rows]


def _confusions(bundle: Bundle) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: true class, answer, how often."""
    test = bundle.document["test"]
    if test is None:
        return []
    counts = np.array(test["confusion"])
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:8]
    places = (np.unravel_index(place, counts.shape) for place in order)
    return [(bundle.classes[i], bundle.classes[j], int(counts[i, j])) for i, j in places if counts[i, j]]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}{_NO_BREAK}%"


def _cost(value: float, cost: str) -> str:
    return format_cost(cost, value).replace(" ", _NO_BREAK)


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}{_NO_BREAK}times"


def _points(difference: float) -> str:
    """A difference of shares: `+0.3 points`."""
    points = round(100 * difference, 1)
    return f"{points:+.1f}{_NO_BREAK}points".replace("-", "−") if points else "the same accuracy"
