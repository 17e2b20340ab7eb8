"""Two machines, as torchrun sees them: two launches that meet at an address."""

import os
import subprocess
import sys

import pytest

from anyvit.deploy.bundle import Bundle
from tests.processes import free_port


@pytest.mark.slow
def test_two_machines_train_one_model(photos, tmp_path):
    words = ["fit", photos, "--model", "hsvit_c2a2_8", "--budget", "params<=1M", "--epochs", "1", "--spread", "groups"]
    port, launches = free_port(), []
    for node in (0, 1):
        there = tmp_path / f"machine-{node}"
        there.mkdir()
        meeting = ["--nnodes", "2", "--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", port]
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *meeting,
            "--nproc-per-node",
            "1",
            "-m",
            "anyvit",
            *words,
        ]
        launches.append(
            subprocess.Popen(
                [str(word) for word in [*command, "--out", "out"]],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=there,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )
    try:
        printed = [launch.communicate(timeout=600) for launch in launches]
    finally:
        for launch in launches:
            launch.kill()
    assert [launch.returncode for launch in launches] == [0, 0], printed
    assert "kept: params<=1M" in printed[0][0]
    assert printed[1][0] == ""
    assert Bundle.load(tmp_path / "machine-0" / "out").document["finished"]
    assert not (tmp_path / "machine-1" / "out").exists()
