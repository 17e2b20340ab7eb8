"""HSViT against model and pipeline parallelism on 1 to 256 devices: utilisation and throughput, simulated.

    python benchmarks/spread_schemes.py

What parts take is measured on this machine, with 16 groups as published and with 256, so that there is one for each
device; links are modelled. The figure is drawn from our own numbers. Seconds are those of the processor on one thread,
which neighbours on the machine hardly change.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import matplotlib

from anyvit.models import create_model
from anyvit.scaling.spread.boards import CostTable
from anyvit.scaling.spread.pace import measure_costs
from anyvit.scaling.spread.schemes import Link, simulate
from anyvit.scaling.spread.sizes import HSViTShape
from interleaved import Effort, write_result

MODEL, GROUPS = "hsvit_c4a8_32", (16, 256)
DEVICES = tuple(2**power for power in range(9))
LINKS = {"free": Link(), "1 Gbit/s, 0.2 ms": Link(1.25e8, 2e-4), "10 Mbit/s, 20 ms": Link(1.25e6, 0.02)}
SIDES = {  # scheme, groups and images a batch, by name
    "model parallel": ("model", 16, 32),
    "pipeline, 4 micro-batches": ("pipeline", 16, 4),
    "pipeline, 32 micro-batches": ("pipeline", 16, 32),
    "HSViT, trunk on the hub": ("hub", 16, 32),
    "HSViT, trunk on the boards": ("boards", 16, 32),
    "HSViT of 256 groups, trunk on the boards": ("boards", 256, 32),
}
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "spread-schemes.png"


def main() -> None:
    """Measure, simulate, write and draw."""
    effort, quick = Effort.asked(__doc__)
    shapes, tables = {}, {}
    for groups in GROUPS:
        model = create_model(MODEL, num_groups=groups).eval()
        shapes[groups] = HSViTShape.of(model.arguments)
        protocol = {"warmup_s": effort.seconds, "min_time_s": effort.seconds, "clock": time.process_time_ns}
        tables[groups] = measure_costs(model, f"{MODEL}, {groups} groups", **protocol)
    curves = {link: {side: curve(*SIDES[side], shapes, tables, LINKS[link]) for side in SIDES} for link in LINKS}
    for side, points in curves["free"].items():
        print(f"{side}: " + ", ".join(f"{n}: {points[n]['utilisation']:.3f}" for n in points))
    tables_as_json = {groups: table.to_json() for groups, table in tables.items()}
    write_result("spread_schemes", {"sides": SIDES, "cost_tables": tables_as_json, "curves": curves}, quick=quick)
    if not quick:
        draw(curves)


def curve(
    scheme: str, groups: int, batch: int, shapes: dict[int, HSViTShape], tables: dict[int, CostTable], link: Link
) -> dict[int, dict[str, float]]:
    """Throughput and utilisation by number of devices."""
    return {n: asdict(simulate(scheme, n, shapes[groups], tables[groups], link, batch=batch)) for n in DEVICES}


def draw(curves: dict[str, dict[str, dict[int, dict[str, float]]]]) -> None:
    """A panel a link: utilisation above, throughput below."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(curves), figsize=(11, 6), sharex=True, sharey="row", layout="constrained")
    for measure, row in zip(("utilisation", "throughput"), rows, strict=True):
        for (link, sides), panel in zip(curves.items(), row, strict=True):
            for side, points in sides.items():
                panel.plot(DEVICES, [points[n][measure] for n in DEVICES], marker="o", markersize=3, label=side)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log" if measure == "throughput" else "linear")
            panel.grid(alpha=0.3)
            if measure == "utilisation":
                panel.set_title(f"links: {link}")
            else:
                panel.set_xlabel("devices")
    rows[0][0].set_ylabel("utilisation")
    rows[1][0].set_ylabel("images a second")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(FIGURE, dpi=120)
    print(f"drawn: {FIGURE}")


if __name__ == "__main__":
    main()
