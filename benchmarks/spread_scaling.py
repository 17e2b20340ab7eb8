"""1, 2 and 4 workers, each one thread in a control group of half a core, against what the plan predicts for them.

    python benchmarks/spread_scaling.py

The cost table is measured by `anyvit measure --cost-table` within such a group, the hub's on a whole core. Needs the
right to set a CPU quota, and two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch

import anyvit
from anyvit.deploy.spread.coordinator import Coordinator
from boards import (
    ONE_THREAD,
    command,
    confined,
    core_share,
    enough,
    latencies,
    pictures,
    running,
    throughput,
    untrained,
    why_no_quota,
    write_devices,
)
from interleaved import Spread, write_result

MODEL, SHARE = "hsvit_c4a8_32", 0.5
WORKERS = (1, 2, 4)
FIRST_PORT = 7311


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, for each figure")
    asked = parser.parse_args()
    if reason := why_no_quota():
        print(f"skipped: {reason}")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = measured(Path(folder), asked.seconds)
    write_result("spread_scaling", {"model": MODEL, "cores_a_worker": SHARE, "cases": cases})


def measured(folder: Path, seconds: float) -> list[dict]:
    """Every number of workers, with the trunk on the boards and on the hub."""
    untrained(MODEL, folder)
    table, own = folder / "half.json", folder / "whole.json"
    measure = command("measure", MODEL, "--cost-table")
    with core_share("table", SHARE) as group:
        subprocess.run(confined(group, [*measure, str(table)]), check=True, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    subprocess.run([*measure, str(own)], check=True, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    cases = []
    for trunk in ("boards", "hub"):
        for count in WORKERS:
            boards = [
                {
                    "name": f"half-{n}",
                    "address": f"127.0.0.1:{FIRST_PORT + n}",
                    "memory": "1GB",
                    "cost_table": str(table),
                }
                for n in range(count)
            ]
            devices = write_devices(folder / "devices.yaml", boards, {"memory": "2GB", "cost_table": str(own)})
            cases.append(case(folder, devices, trunk, count, seconds))
            print(cases[-1], flush=True)
    return cases


def case(folder: Path, devices: Path, trunk: str, count: int, seconds: float) -> dict:
    """One placement, asked."""
    placed = folder / f"placed-{trunk}-{count}"
    plan = anyvit.spread(str(folder / "bundle"), devices=str(devices), out=str(placed), trunk=trunk).plan
    pixels = pictures(1, 32)[0]
    with ExitStack() as stack:
        groups = [stack.enter_context(core_share(f"{trunk}-{n}", SHARE)) for n in range(count)]
        workers = [confined(group, serve(placed, n), core=n) for n, group in enumerate(groups)]
        stack.enter_context(running(workers))
        coordinator = stack.enter_context(Coordinator.open(placed, deadline=10.0))
        latencies(coordinator, pixels, 1.0)
        one_by_one = latencies(coordinator, pixels, seconds)
        rate = throughput(coordinator, pixels, seconds, under_way=enough(plan))
    return {
        "workers": count,
        "trunk": trunk,
        "groups_a_worker": [len(share.groups) for share in plan.shares],
        "latency_ms": {"predicted": plan.latency_s * 1e3, "measured": median(one_by_one) * 1e3},
        "latency_measured_over_predicted": Spread.of([each / plan.latency_s for each in one_by_one]),
        "images_per_second": {"predicted": plan.throughput, "measured": rate},
    }


def serve(placed: Path, number: int) -> list[str]:
    """The command of a worker."""
    part = placed / f"part-{number + 1}.safetensors"
    return command("worker", str(part), "--listen", f"127.0.0.1:{FIRST_PORT + number}")


if __name__ == "__main__":
    main()
