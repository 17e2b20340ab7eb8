"""Two boards behind links of 10 Mbit/s and 20 ms: bytes and latency against the plan's.

    python benchmarks/spread_network.py

Each board is a network namespace, its link a virtual cable with a token bucket at both ends; a relay in the namespace
holds every byte back for 20 ms in each direction. Needs root, `ip` and `tc`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import torch

import anyvit
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.security import TOKEN_VARIABLE, Security
from boards import command, enough, latencies, pictures, running, throughput, untrained, write_devices
from interleaved import Spread, write_result

MODEL = "hsvit_c2a2_32"
RATE, DELAY_MS = "10mbit", 20
PORT, BEHIND = 7002, 7102
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, for each figure")
    asked = parser.parse_args()
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        print("skipped: network namespaces need root, ip and tc")
        return
    torch.set_num_threads(1)
    os.environ[TOKEN_VARIABLE] = "benchmark-of-links"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        links = [stack.enter_context(link(number)) for number in (1, 2)]
        untrained(MODEL, Path(folder))
        cases = [case(Path(folder), links, trunk, asked.seconds) for trunk in ("boards", "hub")]
    write_result("spread_network", {"model": MODEL, "link": f"{RATE}, {DELAY_MS} ms each way", "cases": cases})


@contextmanager
def link(number: int) -> Iterator[tuple[str, str]]:
    """A namespace and the name of the cable's end on this side."""
    space, ours, theirs = f"anyvit{number}", f"anyvit{number}a", f"anyvit{number}b"
    net = f"10.213.{number}"
    shape = f"root tbf rate {RATE} burst 2kb latency 500ms"
    ip(f"netns add {space}")
    try:
        ip(f"link add {ours} type veth peer name {theirs} netns {space}")
        ip(f"addr add {net}.1/24 dev {ours}")
        ip(f"link set {ours} up")
        for each in (f"ip addr add {net}.2/24 dev {theirs}", f"ip link set {theirs} up", "ip link set lo up"):
            ip(f"netns exec {space} {each}")
        subprocess.run(f"tc qdisc add dev {ours} {shape}".split(), check=True)
        ip(f"netns exec {space} tc qdisc add dev {theirs} {shape}")
        yield space, ours
    finally:
        ip(f"netns del {space}")


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def case(folder: Path, links: list[tuple[str, str]], trunk: str, seconds: float) -> dict:
    """One placement over the links, asked."""
    boards = [
        {
            "name": f"board-{number}",
            "address": f"10.213.{number}.2:{PORT}",
            "memory": "1GB",
            "bandwidth": RATE.replace("mbit", "Mbit/s"),
            "latency": f"{DELAY_MS}ms",
        }
        for number in range(1, len(links) + 1)
    ]
    placed = folder / f"placed-{trunk}"
    devices = write_devices(folder / "devices.yaml", boards)
    plan = anyvit.spread(str(folder / "bundle"), devices=str(devices), out=str(placed), trunk=trunk).plan
    inside = [["ip", "netns", "exec", space] for space, _ in links]
    relays = [
        [*enter, sys.executable, str(HERE / "delay.py"), str(PORT), str(BEHIND), str(DELAY_MS)] for enter in inside
    ]
    workers = [
        [*enter, *command("worker", str(placed / f"part-{n + 1}.safetensors"), "--listen", f"127.0.0.1:{BEHIND}")]
        for n, enter in enumerate(inside)
    ]
    pixels = pictures(1, 32)[0]
    security = Security.from_files()
    with running([*relays, *workers]), Coordinator.open(placed, deadline=10.0, security=security) as coordinator:
        latencies(coordinator, pixels, 2.0)
        payload = coordinator.ask(pixels).answer().payload
        planned = {share.board.name: (share.bytes_in, share.bytes_out) for share in plan.shares}
        assert dict(payload) == planned, (payload, planned)
        before = interface_bytes(links)
        one_by_one = latencies(coordinator, pixels, seconds)
        on_wire = [after - start for after, start in zip(interface_bytes(links), before, strict=True)]
        rate = throughput(coordinator, pixels, seconds, under_way=enough(plan))
    found = {
        "trunk": trunk,
        "payload_bytes_an_image": {name: sum(both) for name, both in planned.items()},
        "interface_bytes_an_image": [round(count / len(one_by_one)) for count in on_wire],
        "latency_ms": {"predicted": plan.latency_s * 1e3, "measured": median(one_by_one) * 1e3},
        "latency_measured_over_predicted": Spread.of([each / plan.latency_s for each in one_by_one]),
        "images_per_second": {"predicted": plan.throughput, "measured": rate},
    }
    print(found, flush=True)
    return found


def interface_bytes(links: list[tuple[str, str]]) -> list[int]:
    """Bytes over each cable so far, both directions, headers of all layers included."""
    counters = ("rx_bytes", "tx_bytes")
    return [
        sum(int(Path(f"/sys/class/net/{ours}/statistics/{each}").read_text()) for each in counters) for _, ours in links
    ]


if __name__ == "__main__":
    main()
