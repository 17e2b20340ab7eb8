"""Extracted subnetworks run as fast as timm's plain ViT of the same shape: the ratio of their speeds is 1.0.

    python benchmarks/extracted.py

Both sides have the same weights, and give the same answer to the bit.
"""

from __future__ import annotations

import torch

from anyvit.backends import TorchEager
from anyvit.models import create_model
from interleaved import Effort, Sides, images, plain_vit, ratio, times, write_result

CASES = (  # preset, heads, batch
    ("hydravit_small_patch4_32", 2, 1),
    ("hydravit_small_patch4_32", 6, 1),
    ("hydravit_small_patch4_32", 2, 32),
    ("hydravit_small_patch4_32", 6, 32),
    ("hydravit_base_patch16_224", 3, 1),
    ("hydravit_base_patch16_224", 6, 1),
    ("hydravit_base_patch16_224", 12, 1),
    ("hydravit_base_patch16_224", 3, 32),
)


def sides(preset: str, heads: int, batch: int) -> Sides:
    """A subnetwork cut out of a preset, and what timm builds in its shape."""
    inputs, torch_eager = images(preset, batch), TorchEager()
    extracted = create_model(preset).eval().extract(heads)
    plain = plain_vit(preset, heads)
    plain.load_state_dict(extracted.state_dict())
    ours, timms = torch_eager.prepare(extracted, {}, inputs), torch_eager.prepare(plain, {}, inputs)
    assert torch.equal(ours(inputs), timms(inputs))
    return {"extracted": lambda: ours(inputs), "timm": lambda: timms(inputs)}


def main() -> None:
    """Time every case, and keep the result."""
    effort, quick = Effort.asked(__doc__)
    cases = []
    for preset, heads, batch in CASES:
        series = times(lambda case=(preset, heads, batch): sides(*case), effort)
        speed = ratio(series["timm"], series["extracted"])
        cases.append({"preset": preset, "heads": heads, "batch": batch, "speed_extracted_over_timm": speed})
        print(f"{preset}, {heads} heads, batch {batch}: extracted / timm {speed}", flush=True)
    write_result("extracted", {"cases": cases}, quick=quick)


if __name__ == "__main__":
    main()
