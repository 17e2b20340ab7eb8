"""How much of this machine's matrix-product peak inference reaches, in float32 and bfloat16, on one thread.

    python benchmarks/peak.py

The peak is the best that square matrix products of several sizes reach here, measured in the same turns. MACs are those
of matrix products and convolutions; norms, softmax and GELU count as nothing, so 1.0 is out of reach.
"""

from __future__ import annotations

import torch

from anyvit.backends import TorchEager
from anyvit.costs.counts import count_macs
from anyvit.models import PRESETS, create_model
from interleaved import Effort, Sides, Spread, images, ratio, times, write_result

PRECISIONS = {"float32": {}, "bfloat16": {"precision": "bfloat16"}}
PRODUCTS = (256, 512, 1024)  # rows and columns
CASES = (  # preset, batch
    ("hydravit_small_patch2_8", 1),
    ("hydravit_small_patch4_32", 1),
    ("hydravit_small_patch4_32", 32),
    ("hydravit_tiny_patch16_224", 1),
    ("hydravit_small_patch16_224", 1),
    ("hydravit_base_patch16_224", 1),
)


def sides(precision: str) -> Sides:
    """Matrix products by their size, and the full models of the cases by preset and batch."""
    calls = {str(size): _product(size, getattr(torch, precision)) for size in PRODUCTS}
    for preset, batch in CASES:
        inputs = images(preset, batch)
        runner = TorchEager().prepare(create_model(preset).eval(), PRECISIONS[precision], inputs)
        calls[f"{preset} {batch}"] = lambda runner=runner, inputs=inputs: runner(inputs)
    return calls


def _product(size: int, dtype: torch.dtype):
    left, right = torch.randn(2, size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def main() -> None:
    """Time products and models in the same turns, and keep the shares."""
    effort, quick = Effort.asked(__doc__)
    result = {}
    for precision in PRECISIONS:
        series = times(lambda precision=precision: sides(precision), effort)
        by_size = [[t / size**3 for t in series[str(size)]] for size in PRODUCTS]
        best = [min(turn) for turn in zip(*by_size, strict=True)]  # seconds a MAC at the peak
        peak = Spread.of([1e-9 / t for t in best])
        print(f"{precision}: peak {peak.median:.1f} GMAC/s")
        cases = []
        for preset, batch in CASES:
            macs = batch * count_macs(create_model(preset), PRESETS[preset].image_size)
            reached = ratio(best, [t / macs for t in series[f"{preset} {batch}"]])
            cases.append({"preset": preset, "batch": batch, "share_of_peak": reached})
            print(f"    {preset}, batch {batch}: {reached}", flush=True)
        result[precision] = {"peak_gmacs_a_second": peak, "cases": cases}
    write_result("peak", result, quick=quick)


if __name__ == "__main__":
    main()
