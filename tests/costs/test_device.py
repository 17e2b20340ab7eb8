import os
import platform
import time

import pytest
import timm
import torch

import anyvit
from anyvit.costs import device
from anyvit.costs.device import available_cores, default_threads, machine_state, this_device
from anyvit.errors import SettingError

ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd crc32 asimdhp i8mm bf16
CPU implementer\t: 0x41

processor\t: 1
Features\t: nothing
"""


def test_this_device():
    here = this_device()
    assert here.kind == "cpu"
    assert here.processor
    assert here.cores == available_cores() <= os.cpu_count()
    assert here.versions["anyvit"] == anyvit.__version__
    assert here.versions["timm"] == timm.__version__
    assert here.versions["python"] == platform.python_version()
    assert torch.__version__.startswith(here.versions["torch"])
    assert this_device().fingerprint == here.fingerprint
    assert this_device() is not here
    assert default_threads() == 1


def test_it_is_fast_to_ask():
    this_device()
    start = time.process_time()
    for _ in range(20):
        this_device()
    assert time.process_time() - start < 0.2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform pins no process")
def test_cores_are_those_of_the_process():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert this_device().cores == 1
    finally:
        os.sched_setaffinity(0, before)
    assert this_device().cores == len(before)


def test_arm_is_read_too(monkeypatch):
    monkeypatch.setattr(device.Path, "read_text", lambda *_, **__: ARM)
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    assert device._cpuinfo.__wrapped__()["BogoMIPS"] == "108.00"
    device._cpuinfo.cache_clear()
    assert device._features.__wrapped__() == ("asimd", "asimdhp", "bf16", "i8mm")
    assert device._processor.__wrapped__() == "aarch64"
    device._cpuinfo.cache_clear()


def test_devices_that_are_not_here():
    with pytest.raises(SettingError, match=r"unknown device 'cdua'.* Known: cpu"):
        this_device("cdua")


def test_machine_state_is_plain_numbers():
    assert all(isinstance(value, float) for value in machine_state().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    card = this_device("cuda")
    assert card.kind == "cuda"
    assert card.processor == torch.cuda.get_device_name()
    assert "cuda" in card.versions
