"""OpenVINO models that come and go leave the process able to handle a signal."""

from __future__ import annotations

import ctypes
import signal
import sys

import pytest

from anyvit.backends import backend_named
from anyvit.deploy import standalone
from tests.backends.shapes import IMAGES, shuffled, vit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the signal stack of Linux")


class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def test_the_stack_for_signals_is_there_when_models_are_gone(tmp_path):
    backend, model = backend_named("openvino"), shuffled(vit())
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        backend.save(backend.prepare(model, {}, IMAGES), tmp_path / name)
    runs = [standalone._core().compile_model(tmp_path / name / "model.xml", "CPU") for name in ("first", "second")]
    while runs:
        runs.pop(0)  # the first that came goes first
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    assert stack.flags or _mapped(stack.start)
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [True]


def _mapped(address):
    with open("/proc/self/maps") as maps:
        ranges = [[int(edge, 16) for edge in line.split()[0].split("-")] for line in maps]
    return any(start <= address < end for start, end in ranges)
