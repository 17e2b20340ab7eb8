import json
import logging
import os
import threading
from itertools import cycle

import pytest
import torch
from torch import nn

from anyvit.costs.device import this_device
from anyvit.costs.timing import Latency, measure_latencies, measure_latency
from anyvit.errors import BudgetError, ModelError, SettingError

MS = 1_000_000


class FakeMachine:
    """A clock that only runners move."""

    def __init__(self):
        self.now = 0
        self.calls = []

    def clock(self):
        return self.now

    def runner(self, *milliseconds, name="runner"):
        """A call that takes these times in turn, and from the start again."""
        times = cycle(milliseconds)

        def run(example):
            self.calls.append(name)
            self.now += round(next(times) * MS)

        return run

    def measure(self, runner, **protocol):
        return measure_latency(runner, lambda: None, clock=self.clock, **protocol)


@pytest.fixture
def machine():
    return FakeMachine()


def in_rounds(*medians, warmup=5, runs=25):
    """Times for `runner`: a quick warm-up, then each round at its own pace."""
    return [1] * warmup + [median for median in medians for _ in range(runs)]


SHORT = {"warmup_s": 0, "min_time_s": 0}


def test_occasional_slow_runs_do_not_matter(machine):
    latency = machine.measure(machine.runner(*[2] * 12, 20))
    assert latency.seconds == pytest.approx(0.002, rel=0.05)
    assert latency.p95 == pytest.approx(0.020)  # the tail keeps them
    assert not latency.unstable
    assert latency.interval == pytest.approx((0.002, 0.002))
    assert (latency.rel_iqr, latency.spread) == (0, 0)


def test_a_runner_of_two_speeds_is_unstable(machine, caplog):
    latency = machine.measure(machine.runner(2, 4))
    assert latency.unstable
    assert latency.rel_iqr > 0.5
    assert "unstable timing of run (rounds differ by" in caplog.text


def test_a_round_lasts_long_enough_in_runs_and_in_time(machine):
    machine.measure(machine.runner(1))
    assert len(machine.calls) == 500 + 3 * 500  # half a second each
    machine.calls.clear()
    machine.measure(machine.runner(100))
    assert len(machine.calls) == 5 + 3 * 25


def test_rounds_are_interleaved(machine):
    runners = {name: machine.runner(1, name=name) for name in "abc"}
    latencies = measure_latencies(runners, lambda: None, clock=machine.clock, warmup_runs=1, runs=2, rounds=3, **SHORT)
    assert list(latencies) == list("abc")
    assert "".join(machine.calls) == "abc" + 3 * "aabbcc"


def test_the_fastest_round_counts(machine):
    latency = machine.measure(machine.runner(*in_rounds(2.1, 2.0, 2.05)), **SHORT)
    assert latency.seconds == pytest.approx(0.002)
    assert latency.round_medians == pytest.approx((0.0020, 0.00205, 0.0021))
    assert latency.spread == pytest.approx(0.05)
    assert not latency.unstable


def test_a_disturbed_round_is_made_up_for(machine, caplog):
    latency = machine.measure(machine.runner(*in_rounds(2, 3, 2, 2.1)), **SHORT)
    assert len(machine.calls) == 5 + 4 * 25
    assert latency.round_medians == pytest.approx((0.002, 0.002, 0.0021))
    assert not latency.unstable
    assert not caplog.records


def test_after_three_extra_rounds_it_gives_up(machine):
    latency = machine.measure(machine.runner(*in_rounds(2, 3, 4, 5, 6, 7)), **SHORT)
    assert len(machine.calls) == 5 + 6 * 25
    assert latency.unstable
    assert latency.spread == pytest.approx(1.0)


def test_only_the_unstable_are_timed_again(machine):
    runners = {"steady": machine.runner(1, name="s"), "shaky": machine.runner(2, 4, name="u")}
    latencies = measure_latencies(runners, lambda: None, clock=machine.clock, **SHORT)
    assert machine.calls.count("s") == 5 + 3 * 25
    assert machine.calls.count("u") == 5 + 6 * 25
    assert [name for name, latency in latencies.items() if latency.unstable] == ["shaky"]


def test_a_latency_survives_json(machine):
    latency = machine.measure(machine.runner(2), batch=4, threads=1)
    assert Latency.from_json(json.loads(json.dumps(latency.to_json(), allow_nan=False))) == latency
    assert (latency.batch, latency.threads, latency.device) == (4, 1, this_device().fingerprint)


def test_the_device_is_waited_for_at_each_look_at_the_clock(machine):
    pending = []

    def launch(example):
        pending.append(5 * MS)

    def wait():
        machine.now += sum(pending)
        pending.clear()

    assert machine.measure(launch, sync=wait).seconds == pytest.approx(0.005)


def test_the_input_is_made_once_and_gradients_are_off(machine):
    made, seen = [], []

    def make():
        made.append(torch.zeros(2, 3))
        return made[-1]

    def run(example):
        seen.append((example is made[0], torch.is_inference_mode_enabled()))
        machine.now += MS

    measure_latency(run, make, clock=machine.clock, **SHORT)
    assert len(made) == 1
    assert set(seen) == {(True, True)}


def test_progress_is_told(machine):
    events = []
    machine.measure(machine.runner(1), progress=events.append)
    assert [event.stage for event in events] == ["measure"] * 4
    assert [round(event.done, 2) for event in events] == [0, 0, 0.33, 0.67]


def affinity():
    return {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}


pins = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="the platform pins no process"
)


@pins
@pytest.mark.parametrize("failure", [None, ValueError("no such operator"), KeyboardInterrupt()])
def test_threads_and_cores_are_given_back(machine, failure):
    threads = torch.get_num_threads()
    before = affinity()
    seen = set()

    def run(example):
        seen.add((torch.get_num_threads(), len(os.sched_getaffinity(0))))
        machine.now += MS
        if failure:
            raise failure

    if failure is None:
        machine.measure(run, threads=1)
    else:
        with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ModelError):
            machine.measure(run, threads=1)
    assert seen == {(1, 1)}
    assert torch.get_num_threads() == threads
    assert affinity() == before


@pins
def test_threads_born_while_timing_are_set_free(machine):
    own, started = os.sched_getaffinity(0), []
    stop = threading.Event()

    def run(example):
        machine.now += MS
        if not started:
            started.append(threading.Thread(target=stop.wait))
            started[0].start()

    try:
        machine.measure(run, threads=1)
        assert os.sched_getaffinity(started[0].native_id) == own
    finally:
        stop.set()
        started[0].join()


def test_a_failing_runner_is_named():
    def broken(example):
        raise RuntimeError("shapes do not match")

    def refusing(example):
        raise BudgetError("no")

    with pytest.raises(ModelError, match="heads3 failed while it was timed: RuntimeError: shapes do not match"):
        measure_latencies({"heads3": broken}, lambda: None)
    with pytest.raises(BudgetError, match=r"^no$"):
        measure_latencies({"heads3": refusing}, lambda: None)


@pytest.mark.parametrize("name", ["batch", "threads", "runs", "rounds"])
def test_counts_below_one_are_refused(machine, name):
    with pytest.raises(SettingError, match=f"{name} 0 must be at least 1"):
        machine.measure(machine.runner(1), **{name: 0})


def test_training_mode_is_refused():
    with pytest.raises(SettingError, match=r"Linear is in training mode. Call its eval\(\)"):
        measure_latency(nn.Linear(2, 2), lambda: torch.zeros(1, 2))


def test_a_real_module_on_the_real_clock(caplog):
    caplog.set_level(logging.ERROR)  # whether this machine is quiet is not the matter
    protocol = {"warmup_runs": 1, "warmup_s": 0, "runs": 5, "rounds": 2, "min_time_s": 0}
    latency = measure_latency(nn.Linear(2, 2).eval(), lambda: torch.zeros(1, 2), **protocol)
    assert 0 < latency.seconds <= latency.round_medians[-1]
    assert latency.interval[0] <= latency.seconds <= latency.interval[1]
    assert latency.threads == 1
    assert len(latency.round_medians) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_is_waited_for():
    large = torch.randn(8192, 8192, device="cuda")
    latency = measure_latency(lambda x: x @ x, lambda: large, runs=5)
    assert latency.seconds > 2 * 8192**3 / 1e15  # no card reaches a petaflop in float32
