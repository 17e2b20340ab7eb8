"""What each lever, runtime and precision gains over timm's eager float32: DeiT-Small's shape, 224 px, one thread.

    python benchmarks/shrink_speed.py --images FOLDER --batch 1
    python benchmarks/shrink_speed.py --images FOLDER --batch 16

FOLDER holds images in folders by class; int8-static is calibrated on 32 of them. Weights are random, which no time
depends on. Beside each speed-up stands what its MACs promise, on the same runtime, lever on against lever off; and of
each runtime the share of the peak that matrix products in its precision reach here, measured in the same turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import timm
import torch
from openvino import opset13
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from anyvit.costs.counts import count_macs
from anyvit.models import elastic
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.shrink import lever_named
from anyvit.scaling.workshop import Workshop
from interleaved import Effort, Sides, Spread, ratio, times, write_result
from operators import operators

MODEL, SIZE, CALIBRATION = "deit_small_patch16_224", 224, 32
EAGER = "torch float32"
EVERYWHERE = (
    *(EAGER, "torch bfloat16", "torch int8-dynamic"),
    *("torch-compile float32", "torch-compile bfloat16", "torch-compile int8-dynamic"),
    *("onnxruntime float32", "onnxruntime int8-dynamic", "onnxruntime int8-static"),
    *("openvino float32", "openvino bfloat16", "openvino int8-static"),
)
FLOATS = (EAGER, "onnxruntime float32", "openvino float32", "openvino bfloat16")
FEW = (EAGER, "openvino float32")
BEST = ("openvino bfloat16", "openvino int8-static")
WATCHED = (EAGER, "onnxruntime float32", "openvino bfloat16", "openvino int8-static")

PRODUCTS = (512, 1024)  # rows and columns
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
HINTS = {"float32": "f32", "bfloat16": "bf16"}
ROWS = (197, 100, 52, 28)  # tokens of one image at EViT 0.5, from block to block
WIDTHS, DEPTH = (384, 1536), 12  # of the MLPs


@dataclass(frozen=True)
class Case:
    """Levers together: of which form of the model, on which runtimes, and whether their operators are listed."""

    name: str
    levers: tuple[Step, ...]
    runtimes: tuple[str, ...]
    form: str = "timm"
    watched: bool = False

    def candidate(self, runtime: str) -> Candidate:
        backend, precision = runtime.split()
        return Candidate(self.levers, Step(backend, {} if precision == "float32" else {"precision": precision}))


def evit(rate: float) -> Step:
    return Step("tokens", {"method": "evit", "keep_rate": rate})


def tome(r: int) -> Step:
    return Step("tokens", {"method": "tome", "r": r})


IDLE = Step("reparameterize", {"idle": 0.5})
PLAIN = Case("nothing", (), EVERYWHERE)
CASES = (
    Case("EViT 0.7", (evit(0.7),), FLOATS),
    Case("EViT 0.5", (evit(0.5),), (*FLOATS, "openvino int8-static", "onnxruntime int8-dynamic"), watched=True),
    Case("ToMe 8", (tome(8),), FLOATS),
    Case("ToMe 13", (tome(13),), (*FLOATS, "openvino int8-static", "onnxruntime int8-dynamic"), watched=True),
    Case("5 of 6 heads", (Step("heads", {"heads": 5}),), FEW, "elastic"),
    Case("3 of 6 heads", (Step("heads", {"heads": 3}),), FEW, "elastic"),
    Case("units pruned by 0.35", (Step("prune", {"units": 0.35}),), FEW),
    Case("units pruned by 0.55", (Step("prune", {"units": 0.55}),), FEW),
    Case("half of the MLPs merged", (IDLE,), FEW, "idle"),
    Case("3 of 6 heads, EViT 0.5", (Step("heads", {"heads": 3}), evit(0.5)), BEST, "elastic"),
    Case("units pruned by 0.35, EViT 0.5", (Step("prune", {"units": 0.35}), evit(0.5)), BEST),
    Case("half of the MLPs merged, EViT 0.5", (IDLE, evit(0.5)), BEST, "idle"),
)


@dataclass
class Bench:
    """The models in the forms that levers need, the images, and what all cases are compared with."""

    batch: int
    calibration: Tensor
    effort: Effort
    models: dict[str, nn.Module] = field(default_factory=dict)
    unshrunk: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = timm.create_model(MODEL).eval()
        idle = lever_named("reparameterize").before_training(model, IDLE.setting)
        self.models = {"timm": model, "elastic": elastic(model), "idle": idle.eval()}
        self.images = self.calibration[:1].expand(self.batch, -1, -1, -1).contiguous()
        self.macs = self.batch * count_macs(model, SIZE)

    def built(self, case: Case) -> tuple[dict[str, Any], int]:
        """The runners of a case by runtime, and the MACs of one call."""
        workshop = Workshop(self.models[case.form], self.images, self.calibration)
        runners = {runtime: workshop.runner(case.candidate(runtime)) for runtime in case.runtimes}
        return runners, self.batch * count_macs(workshop.shape(case.candidate(case.runtimes[0])), SIZE)

    def timed(self, sides: Sides) -> dict[str, list[float]]:
        return times(lambda: sides, self.effort)

    def calls(self, runners: dict[str, Any]) -> Sides:
        return {name: lambda runner=runner: runner(self.images) for name, runner in runners.items()}

    def watch(self, case: Case, runtime: str, runners: dict[str, Any]) -> dict[str, Any] | None:
        """Where the time of a call goes, where the runtime tells well: without the levers, then with them."""
        if not case.watched or runtime not in WATCHED:
            return None
        calls, hint = max(2, 12 // self.batch), "f32" if "float32" in runtime else "bf16"
        sides = {"off": self.unshrunk[runtime], "on": runners[runtime]}
        return {side: operators(runner, self.images, calls, hint) for side, runner in sides.items()}


def products(macs: int) -> Sides:
    """Square matrix products by precision, library and size. The fastest of a precision is the peak.

    Of each as many in a row as have `macs` together: so others on the machine hold up both sides alike.
    """
    calls: dict[str, Callable[[], object]] = {}
    for size in PRODUCTS:
        for precision, dtype in DTYPES.items():
            calls[f"{precision} torch {size}"] = _in_a_row(_torch_product(size, dtype), macs // size**3)
        for precision, hint in HINTS.items():
            calls[f"{precision} openvino {size}"] = _in_a_row(_openvino_product(size, hint), macs // size**3)
    return calls


def _in_a_row(call: Callable[[], object], number: int) -> Callable[[], object]:
    def row() -> None:
        for _ in range(number):
            call()

    return row


def _torch_product(size: int, dtype: torch.dtype) -> Callable[[], object]:
    left, right = (10 * torch.randn(2, size, size)).to(dtype)
    return (lambda: torch._int_mm(left, right)) if dtype == torch.int8 else (lambda: torch.mm(left, right))


def _openvino_product(size: int, hint: str) -> Callable[[], object]:
    left, right = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    return _openvino_products(left, [right], hint)


def _openvino_products(left: np.ndarray, weights: list[np.ndarray], hint: str) -> Callable[[], object]:
    given = opset13.parameter(left.shape, np.float32)
    last = given
    for weight in weights:
        last = opset13.matmul(last, opset13.constant(weight), False, True)
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    model = openvino.Model([last], [given])
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([left], share_inputs=True)


def products_by_rows() -> Sides:
    """The products of all MLPs of the model and nothing else, for as many rows as there are tokens, in OpenVINO."""
    random = np.random.default_rng(0)
    shapes = [WIDTHS[::-1], WIDTHS] * DEPTH
    weights = [random.standard_normal(shape, dtype=np.float32) / 30 for shape in shapes]
    return {
        f"rows {precision} {rows}": _openvino_products(
            random.standard_normal((rows, WIDTHS[0]), dtype=np.float32), weights, hint
        )
        for precision, hint in HINTS.items()
        for rows in ROWS
    }


def peaks(series: dict[str, list[float]], macs: int) -> dict[str, list[float]]:
    """By precision the seconds that a MAC takes in the product that is fastest over all turns, one figure a turn."""
    found = {}
    for precision in DTYPES:
        volumes = {name: int(name.split()[-1]) ** 3 for name in series if name.startswith(precision)}
        by_product = [[t / (macs // volume * volume) for t in series[name]] for name, volume in volumes.items()]
        found[precision] = min(by_product, key=median)
    return found


def shares_by_rows(series: dict[str, list[float]], peak: dict[str, list[float]]) -> dict[str, Spread]:
    """What share of the peak the products of the MLPs reach alone, by precision and rows."""
    macs = {rows: rows * 2 * DEPTH * WIDTHS[0] * WIDTHS[1] for rows in ROWS}
    return {
        f"{precision}, {rows} rows": ratio(
            peak[precision], [t / macs[rows] for t in series[f"rows {precision} {rows}"]]
        )
        for precision in HINTS
        for rows in ROWS
    }


def runtimes(bench: Bench) -> tuple[list[dict[str, Any]], dict[str, Spread]]:
    """The unshrunk model on every runtime: speed over timm eager and share of the peak; and that of products alone."""
    bench.unshrunk, macs = bench.built(PLAIN)
    alone = products_by_rows() if bench.batch == 1 else {}
    series = bench.timed({**bench.calls(bench.unshrunk), **products(macs), **alone})
    peak = peaks(series, macs)
    by_rows = shares_by_rows(series, peak) if alone else {}
    return [speed_of(runtime, series, peak, macs) for runtime in EVERYWHERE], by_rows


def speed_of(runtime: str, series: dict[str, list[float]], peak: dict[str, list[float]], macs: int) -> dict[str, Any]:
    """One line of the table of runtimes."""
    best = peak[runtime.split()[1].partition("-")[0]]
    return {
        "runtime": runtime,
        "ms": 1e3 * median(series[runtime]),
        "speed_over_timm_eager": ratio(series[EAGER], series[runtime]),
        "share_of_peak": ratio(best, [t / macs for t in series[runtime]]),
        "peak_gmacs_a_second": Spread.of([1e-9 / t for t in best]),
    }


def levers(bench: Bench, case: Case) -> Iterator[dict[str, Any]]:
    """A case on its runtimes: speed over timm eager, and over the unshrunk model on the same runtime."""
    runners, macs = bench.built(case)
    off = {name: bench.unshrunk[name] for name in dict.fromkeys((EAGER, *case.runtimes))}
    series = bench.timed(bench.calls({**off, **{f"{name} on": runner for name, runner in runners.items()}}))
    ideal = bench.macs / macs
    for runtime in case.runtimes:
        speed = ratio(series[runtime], series[f"{runtime} on"])
        yield {
            "levers": case.name,
            "runtime": runtime,
            "ms": 1e3 * median(series[f"{runtime} on"]),
            "speed_over_timm_eager": ratio(series[EAGER], series[f"{runtime} on"]),
            "speed_over_same_runtime": speed,
            "promised_by_macs": ideal,
            "share_of_promise": speed.median / ideal,
            "operators": bench.watch(case, runtime, runners),
        }


def calibration_images(folder: Path) -> Tensor:
    """Images (32, 3, 224, 224) preprocessed as the model's configuration says, evenly spread over the folder."""
    transform = create_transform(**resolve_data_config(model=timm.create_model(MODEL)), is_training=False)
    images = ImageFolder(str(folder), transform)
    chosen = np.linspace(0, len(images) - 1, CALIBRATION).round().astype(int)
    return torch.stack([images[int(place)][0] for place in chosen])


def main() -> None:
    """Time all cases, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="images in folders by class, to calibrate on")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default 1)")
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    effort = Effort(1, 2, 0.01) if given.quick else Effort(1, 7 if given.batch == 1 else 3, 0.2)
    bench = Bench(given.batch, calibration_images(given.images), effort)
    unshrunk, by_rows = runtimes(bench)
    for found in unshrunk:
        print(f"{found['runtime']}, {found['ms']:.1f} ms: over timm eager {found['speed_over_timm_eager']}")
        print(f"    share of the peak {found['share_of_peak']}", flush=True)
    for name, share in by_rows.items():
        print(f"the products of all MLPs alone, {name}: {share} of the peak")
    shrunk = []
    for case in CASES[:2] if given.quick else CASES:
        for found in levers(bench, case):
            shrunk.append(found)
            print(f"{case.name}, {found['runtime']}, {found['ms']:.1f} ms: {found['speed_over_timm_eager']} over timm")
            print(f"    over the same runtime {found['speed_over_same_runtime']}")
            print(
                f"    MACs promise {found['promised_by_macs']:.2f}, reached {found['share_of_promise']:.3f}", flush=True
            )
    result = {
        "model": MODEL,
        "image_size": SIZE,
        "batch": given.batch,
        "unshrunk": unshrunk,
        "share_of_peak_of_the_products_of_all_mlps": by_rows,
        "shrunk": shrunk,
    }
    write_result("shrink_speed" if given.batch == 1 else f"shrink_speed-b{given.batch}", result, quick=given.quick)


if __name__ == "__main__":
    main()
