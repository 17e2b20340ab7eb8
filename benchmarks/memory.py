"""Holding all ten subnetworks of the base model (3 to 12 heads) needs at most 1.05 times the memory of one ViT.

    python benchmarks/memory.py

Each figure is the peak rise over the imported runtime, in a new process; the other side is timm's ViT of full size. The
full model answers on both sides; that every subnetwork has answered too, each with activations of another size, is a
third figure.
"""

from __future__ import annotations

from collections.abc import Mapping

from anyvit.backends import TorchEager
from anyvit.costs.memory import peak_memory
from anyvit.models import create_model
from interleaved import Effort, Spread, images, plain_vit, ratio, write_result

PRESET, FULL = "hydravit_base_patch16_224", 12


def hold_all(argument: Mapping[str, bool]) -> None:
    """A runner of every subnetwork; the largest one answers, or where `all_answer` every one while all are held."""
    inputs, torch_eager = images(PRESET, 1), TorchEager()
    model = create_model(PRESET).eval()
    runners = [torch_eager.prepare(model.subnetwork(heads), {}, inputs) for heads in model.elastic_heads]
    assert len(runners) == 10
    for runner in runners if argument["all_answer"] else runners[-1:]:
        runner(inputs)


def hold_one(_: object) -> None:
    """A runner of timm's plain ViT of full size, which answers once."""
    inputs = images(PRESET, 1)
    TorchEager().prepare(plain_vit(PRESET, FULL), {}, inputs)(inputs)


def main() -> None:
    """Measure each side in processes of its own, in turn, and keep the result."""
    effort, quick = Effort.asked(__doc__)
    rises: dict[str, list[float]] = {"ten": [], "ten, all answer": [], "one": []}
    for _ in range(effort.buildings):
        rises["ten"].append(peak_memory("memory:hold_all", {"all_answer": False}).rise)
        rises["ten, all answer"].append(peak_memory("memory:hold_all", {"all_answer": True}).rise)
        rises["one"].append(peak_memory("memory:hold_one").rise)
    memory = {name: ratio(rises[name], rises["one"]) for name in ("ten", "ten, all answer")}
    for name, spread in memory.items():
        print(f"{name} / one: {spread}, of {Spread.of(rises['one']).median / 1e6:.0f} MB")
    result = {
        "preset": PRESET,
        "memory_ten_over_one": memory["ten"],
        "memory_ten_all_answer_over_one": memory["ten, all answer"],
        "bytes": rises,
    }
    write_result("memory", result, quick=quick)


if __name__ == "__main__":
    main()
