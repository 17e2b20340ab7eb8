"""Hardware-aware scaling: closed-form costs, timings summed up, their fit, and a search with the strategy it gives."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from anyvit.costs.counts import Specification, vit_macs, vit_params
from anyvit.costs.predictor import LinearPredictor, fit_terms, terms
from anyvit.costs.timing import summarize
from anyvit.scaling.design.factors import FACTORS, Limits
from anyvit.scaling.design.scaling import greedy
from anyvit.scaling.design.strategy import Strategy
from anyvit.scaling.design.trace import Trace
from tests.golden.vectors import Golden, Handler


def _cost_formulas(golden: Golden) -> dict[str, object]:
    specs, columns = golden.config["specs"], golden.config["columns"]
    assert golden.inputs["spec"].tolist() == [[spec[column] for column in columns] for spec in specs]
    shapes = [Specification(**spec, num_classes=golden.config["num_classes"]) for spec in specs]
    return {"out/params": [vit_params(shape) for shape in shapes], "out/macs": [vit_macs(shape) for shape in shapes]}


def _latency_statistics(golden: Golden) -> dict[str, object]:
    summaries = {name: summarize(series.tolist()) for name, series in golden.under("in").items()}
    return {f"out/{name}/{key}": value for name, found in summaries.items() for key, value in asdict(found).items()}


def _latency_fit(golden: Golden) -> dict[str, object]:
    """The columns are correlated, so the weights are known less well than what they predict."""
    features, latencies = golden.inputs["features"].numpy(), golden.inputs["latency"].numpy()
    specs = [Specification(**spec) for spec in golden.config["specs"]]
    np.testing.assert_allclose([terms(spec) for spec in specs], features, rtol=1e-12)
    weights = fit_terms(features, latencies)
    np.testing.assert_allclose(weights, golden.tensors["out/weights"].numpy(), rtol=1e-4)
    predicted = np.array([LinearPredictor(tuple(weights))(spec) for spec in specs])
    np.testing.assert_allclose(predicted, golden.tensors["out/predicted"].numpy(), rtol=1e-6)
    mape = np.abs(predicted / latencies - 1).mean()
    return {"out/weights": weights, "out/predicted": predicted, "out/mape": mape}


def _greedy_search(golden: Golden) -> dict[str, object]:
    config = golden.config
    cost, base = _cost(config["cost_kind"]), Specification(**config["base"])
    accuracies = {_key(c["spec"]): c["accuracy"] for s in config["trace"] for c in s["candidates"] if "accuracy" in c}
    assert config["factor_order"] == [*FACTORS]
    assert golden.inputs["budget"] == config["budget"]
    trace = greedy(
        base,
        config["budget"],
        cost,
        lambda spec: accuracies[_key(asdict(spec))],
        ratio=config["ratio"],
        tol=config["tol"],
        limits=_limits(config),
    )
    strategy = Strategy.of(trace)
    return {
        "trace": _like(_plain(trace), config["trace"]),
        "final": _like(asdict(trace.final), config["final"]),
        "exponents": pytest.approx(strategy.exponents, rel=1e-9, abs=1e-9),
        "apply": [_applied(strategy, case, cost, config) for case in config["apply"]],
        "out/cost_path": [price for _, price in trace.path],
        "out/exponents": [strategy.exponents[factor] for factor in config["factor_order"]],
    }


def _cost(kind: str | dict[str, str]):
    """`macs`, or a formula in the factors, `macs` and `tokens`."""
    if kind == "macs":
        return vit_macs
    (formula,) = kind.values()
    code = compile(formula.split(",")[0].replace("^", "**"), "formula", "eval")

    def cost(spec: Specification) -> float:
        names = {**asdict(spec), "macs": vit_macs(spec), "params": vit_params(spec), "tokens": spec.num_patches + 1}
        return eval(code, {"__builtins__": {}}, names)

    return cost


def _limits(config) -> Limits:
    low, high, _ = config["limits"]["image_size"]  # its step is the patch
    ranges = {name: tuple(values) for name, values in config["limits"].items()}
    return Limits(**{**ranges, "image_size": (low, high)}, patch_sizes=tuple(config["patch_list"]))


def _applied(strategy: Strategy, case, cost, config) -> object:
    found = strategy.apply(Specification(**case["base"]), case["target"], cost, patch_sizes=tuple(config["patch_list"]))
    told = {"result": asdict(found.spec), "relative_error": found.relative_error}
    return _like({**case, **told}, case)


def _plain(trace: Trace) -> list[object]:
    return [step.to_json() for step in trace.steps]


def _like(found, expected):
    """What the file tells of it, and nothing more; figures in floating point to a rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return {key: _like(found.get(key), value) for key, value in expected.items()}
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return [_like(one, other) for one, other in zip(found, expected, strict=True)]
    if isinstance(found, float) and isinstance(expected, float) and math.isclose(found, expected, rel_tol=1e-12):
        return expected
    return found


def _key(spec) -> tuple[float, ...]:
    return tuple(spec[factor] for factor in FACTORS)


TAKEN = {"base", "budget", "ratio", "tol", "cost_kind", "limits", "patch_list", "factor_order"}

HANDLERS = {
    ("hwscaling", "cost_formulas"): Handler({"specs", "num_classes", "columns"}, _cost_formulas, {"out": 0}),
    ("hwscaling", "latency_statistics"): Handler({"outlier", "quantile", "ci"}, _latency_statistics, {"out": 1e-12}),
    ("hwscaling", "latency_fit"): Handler({"specs", "feature_names"}, _latency_fit),
    ("hwscaling", "greedy_search"): Handler(TAKEN, _greedy_search, {"out": 1e-9}),
}
