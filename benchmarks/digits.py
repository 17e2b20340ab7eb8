"""Digits at full length, as the quick start trains them: accuracy of every subnetwork, three seeds.

    python benchmarks/digits.py

An honest split by seed: 20 % of the images test, part of the rest chooses, the remainder trains. The bounds to keep are
means of at least 96 % at full size and 92 % at the smallest of four subnetworks.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import mean

import anyvit
from anyvit.data import open_data
from anyvit.scaling.scoring import score
from anyvit.scaling.workshop import Workshop
from interleaved import write_result

SEEDS = (0, 1, 2)


def main() -> None:
    by_seed, seconds = {}, []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            bundle = anyvit.quickstart(out=str(Path(folder) / "run"), seed=seed)
            seconds.append(time.monotonic() - begun)
            plain = [result for result in bundle.results if not result.candidate.backend.setting]
            test = open_data("digits", seed=seed).splits["test"]
            scored = score(
                Workshop(bundle.model(), bundle.conditions.example()), plain, test, bundle.preprocessing, bundle.classes
            )
            by_seed[seed] = {result.id: result.accuracy for result in scored}
            promise = bundle.document["promise"]
            print(f"seed {seed}: {seconds[-1]:.0f} s, chosen {bundle.chosen.id}, {promise['status']}, {by_seed[seed]}")
            assert promise["status"] == "kept"
    means = {id: mean(accuracies[id] for accuracies in by_seed.values()) for id in by_seed[SEEDS[0]]}
    print("means", means)
    write_result("digits", {"test_accuracy_by_seed": by_seed, "means": means, "seconds_of_the_whole_run": seconds})
    full, *_, smallest = means.values()
    assert full >= 0.96
    assert smallest >= 0.92


if __name__ == "__main__":
    main()
