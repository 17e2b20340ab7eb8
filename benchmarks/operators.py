"""Where the time of one call goes, by kind of operator, as each runtime tells itself.

Watching costs time too, so what the operators take together is more than a call takes unwatched.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import onnxruntime
import openvino
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from anyvit.backends.onnxruntime import OnnxRunner
from anyvit.backends.openvino import OpenVinoRunner
from anyvit.protocols import Runner

WARM_UP, SHOWN = 2, 14


def operators(runner: Runner, images: Tensor, calls: int, hint: str) -> dict[str, dict[str, float]]:
    """Milliseconds and number a call of the kinds that take most, and of `all`.

    Args:
        runner: Of PyTorch, ONNX Runtime or OpenVINO.
        images: What it is called with.
        calls: How often it is watched; the median counts.
        hint: What OpenVINO computes in where it is not in int8, as `INFERENCE_PRECISION_HINT` names it.
    """
    if isinstance(runner, OpenVinoRunner):
        watched = list(_openvino(runner, images, calls, hint))
    elif isinstance(runner, OnnxRunner):
        watched = list(_onnxruntime(runner, images, calls))
    else:
        watched = list(_torch(runner, images, calls))
    by_kind = defaultdict(list)
    for call in watched:
        for kind in {kind for kind, _ in call}:
            by_kind[kind].append([ms for other, ms in call if other == kind])
    found = {
        kind: {"ms": median(map(sum, times)), "number": median(map(len, times))} for kind, times in by_kind.items()
    }
    whole = {"ms": median(sum(ms for _, ms in call) for call in watched), "number": median(map(len, watched))}
    most = sorted(found, key=lambda kind: -found[kind]["ms"])[:SHOWN]
    return {"all": whole, **{kind: found[kind] for kind in most}}


Call = list[tuple[str, float]]
"""Kind and milliseconds of each operator."""


def _openvino(runner: OpenVinoRunner, images: Tensor, calls: int, hint: str) -> Iterator[Call]:
    fixed = runner.graph.clone()
    fixed.reshape(list(images.shape))
    options = {
        "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(fixed, "CPU", options).create_infer_request()
    for call in range(WARM_UP + calls):
        request.infer([images.numpy()])
        if call >= WARM_UP:
            info = request.get_profiling_info()
            ran = [node for node in info if node.status == openvino.ProfilingInfo.Status.EXECUTED]
            yield [(f"{node.node_type} {node.exec_type}", node.real_time.total_seconds() * 1e3) for node in ran]


def _onnxruntime(runner: OnnxRunner, images: Tensor, calls: int) -> Iterator[Call]:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(runner.graph, options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UP + calls):
            session.run(None, {"images": images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    seen: Counter[str] = Counter()
    by_call: list[Call] = [[] for _ in range(WARM_UP + calls)]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_call[seen[event["name"]]].append((event["args"]["op_name"], event["dur"] / 1e3))
            seen[event["name"]] += 1
    yield from by_call[WARM_UP:]


def _torch(runner: Runner, images: Tensor, calls: int) -> Iterator[Call]:
    for _ in range(WARM_UP):
        runner(images)
    for _ in range(calls):
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            runner(images)
        yield [(event.name, event.self_cpu_time_total / 1e3) for event in watched.events()]
