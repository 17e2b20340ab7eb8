"""Run-time subnetworks, which are views of the full weights, run at least 0.95 times as fast as extracted ones.

    python benchmarks/views.py

Only the weights of query, key and value are laid out anew at each call; all others are read where they lie.
"""

from __future__ import annotations

import torch

from anyvit.backends import TorchEager
from anyvit.models import create_model
from interleaved import Effort, Sides, images, ratio, times, write_result

CASES = (  # preset, heads, batch
    ("hydravit_small_patch2_8", 3, 1),
    ("hydravit_small_patch2_8", 5, 1),
    ("hydravit_small_patch2_8", 3, 32),
    ("hydravit_small_patch4_32", 2, 1),
    ("hydravit_small_patch4_32", 4, 1),
    ("hydravit_small_patch4_32", 4, 32),
    ("hydravit_base_patch16_224", 3, 1),
    ("hydravit_base_patch16_224", 6, 1),
    ("hydravit_base_patch16_224", 11, 1),
)


def sides(preset: str, heads: int, batch: int) -> Sides:
    """The same subnetwork twice, over the full weights and on its own; they must give the same answer."""
    inputs, torch_eager = images(preset, batch), TorchEager()
    model = create_model(preset).eval()
    view = torch_eager.prepare(model.subnetwork(heads), {}, inputs)
    extracted = torch_eager.prepare(model.extract(heads), {}, inputs)
    torch.testing.assert_close(view(inputs), extracted(inputs), rtol=0, atol=1e-6)
    return {"view": lambda: view(inputs), "extracted": lambda: extracted(inputs)}


def main() -> None:
    """Time every case, and keep the result."""
    effort, quick = Effort.asked(__doc__)
    cases = []
    for preset, heads, batch in CASES:
        series = times(lambda case=(preset, heads, batch): sides(*case), effort)
        speed = ratio(series["extracted"], series["view"])
        cases.append({"preset": preset, "heads": heads, "batch": batch, "speed_view_over_extracted": speed})
        print(f"{preset}, {heads} heads, batch {batch}: view / extracted {speed}", flush=True)
    write_result("views", {"cases": cases}, quick=quick)


if __name__ == "__main__":
    main()
