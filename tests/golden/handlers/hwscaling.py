"""Hardware-aware scaling: closed-form costs, and the summary of a series of timings."""

from dataclasses import asdict

from anyvit.costs.counts import Specification, vit_macs, vit_params
from anyvit.costs.timing import summarize
from tests.golden.vectors import Golden, Handler


def _cost_formulas(golden: Golden) -> dict[str, object]:
    specs, columns = golden.config["specs"], golden.config["columns"]
    assert golden.inputs["spec"].tolist() == [[spec[column] for column in columns] for spec in specs]
    shapes = [Specification(**spec, num_classes=golden.config["num_classes"]) for spec in specs]
    return {"out/params": [vit_params(shape) for shape in shapes], "out/macs": [vit_macs(shape) for shape in shapes]}


def _latency_statistics(golden: Golden) -> dict[str, object]:
    summaries = {name: summarize(series.tolist()) for name, series in golden.under("in").items()}
    return {f"out/{name}/{key}": value for name, found in summaries.items() for key, value in asdict(found).items()}


HANDLERS = {
    ("hwscaling", "cost_formulas"): Handler({"specs", "num_classes", "columns"}, _cost_formulas, {"out": 0}),
    ("hwscaling", "latency_statistics"): Handler({"outlier", "quantile", "ci"}, _latency_statistics, {"out": 1e-12}),
}
