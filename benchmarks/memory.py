"""All ten subnetworks of the base model (3 to 12 heads), held and run, need at most 1.05 times the memory of one ViT.

    python benchmarks/memory.py

Each figure is the peak rise over the imported runtime, in a new process; the other side is timm's ViT of full size.
"""

from __future__ import annotations

from interleaved import Effort, Spread, images, plain_vit, ratio, write_result

from anyvit.backends import TorchEager
from anyvit.costs.memory import peak_memory
from anyvit.models import create_model

PRESET, FULL = "hydravit_base_patch16_224", 12


def hold_all(_: object) -> None:
    """A runner of every subnetwork, each of which answers once while all are held."""
    inputs, torch_eager = images(PRESET, 1), TorchEager()
    model = create_model(PRESET).eval()
    runners = [torch_eager.prepare(model.subnetwork(heads), {}, inputs) for heads in model.elastic_heads]
    assert len(runners) == 10
    for runner in runners:
        runner(inputs)


def hold_one(_: object) -> None:
    """A runner of timm's plain ViT of full size, which answers once."""
    inputs = images(PRESET, 1)
    TorchEager().prepare(plain_vit(PRESET, FULL), {}, inputs)(inputs)


def main() -> None:
    effort, quick = Effort.asked(__doc__)
    all_of_them, one = [], []
    for _ in range(effort.buildings):
        all_of_them.append(float(peak_memory("memory:hold_all").rise))
        one.append(float(peak_memory("memory:hold_one").rise))
    memory = ratio(all_of_them, one)
    print(f"ten subnetworks / one ViT: {memory}, of {Spread.of(one).median / 1e6:.0f} MB")
    result = {"preset": PRESET, "memory_ten_over_one": memory, "bytes_ten": all_of_them, "bytes_one": one}
    write_result("memory", result, quick=quick)


if __name__ == "__main__":
    main()
