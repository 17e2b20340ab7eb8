"""Switching between subnetworks costs next to nothing: held ones alternate at the speed at which each repeats.

    python benchmarks/switching.py

Beside it, how long it takes until a subnetwork that is not held yet is ready, and what that spares: building a
separate model of that size and reading its weights from a file that the system has in memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from anyvit.backends import TorchEager
from anyvit.models import create_model
from interleaved import Effort, Sides, Spread, images, plain_vit, ratio, times, write_result

CASES = (  # preset, two numbers of heads
    ("hydravit_small_patch2_8", 3, 5),
    ("hydravit_small_patch4_32", 2, 4),
    ("hydravit_base_patch16_224", 3, 6),
)


def sides(preset: str, first: int, second: int, file: Path) -> Sides:
    """Calls of two held subnetworks, and two ways to come by one that is not held."""
    inputs, torch_eager = images(preset, 1), TorchEager()
    model = create_model(preset).eval()
    one, other = (torch_eager.prepare(model.subnetwork(heads), {}, inputs) for heads in (first, second))
    save_file(model.extract(second).state_dict(), file)

    def read() -> None:
        separate = plain_vit(preset, second)
        separate.load_state_dict(load_file(file))
        torch_eager.prepare(separate, {}, inputs)

    return {
        "alternating": lambda: (one(inputs), other(inputs)),
        "first twice": lambda: (one(inputs), one(inputs)),
        "second twice": lambda: (other(inputs), other(inputs)),
        "made ready": lambda: torch_eager.prepare(model.subnetwork(second), {}, inputs),
        "separate model read": read,
    }


def main() -> None:
    """Time every case, and keep the result."""
    effort, quick = Effort.asked(__doc__)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "separate.safetensors")
        for preset, first, second in CASES:
            series = times(lambda case=(preset, first, second): sides(*case, file), effort)
            repeating = [(a + b) / 2 for a, b in zip(series["first twice"], series["second twice"], strict=True)]
            alternating = ratio(series["alternating"], repeating)
            switch = [(a - b) / 2 for a, b in zip(series["alternating"], repeating, strict=True)]
            spared = ratio(series["made ready"], series["separate model read"])
            ready = Spread.of(series["made ready"])
            cases.append(
                {
                    "preset": preset,
                    "heads": [first, second],
                    "time_alternating_over_repeating": alternating,
                    "seconds_a_switch": Spread.of(switch),
                    "seconds_until_ready": ready,
                    "time_ready_over_separate_model": spared,
                }
            )
            print(f"{preset}, {first} and {second} heads: alternating / repeating {alternating}")
            print(f"    made ready in {1e3 * ready.median:.1f} ms; over a separate model read {spared}", flush=True)
    write_result("switching", {"cases": cases}, quick=quick)


if __name__ == "__main__":
    main()
