import contextlib
import json
import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvit.costs.budget import COSTS, Bound, Budget, format_cost
from anyvit.errors import SettingError


def only(text):
    (bound,) = Budget.parse(text).bounds
    return bound


def test_the_budget_of_the_guide():
    budget = Budget.parse(
        "latency<=5ms, memory<=200MB, params<=5M, macs<=1G, size<=20MB, throughput>=100/s, accuracy>=0.9"
    )
    assert {bound.cost: bound.value for bound in budget.bounds} == {
        "latency": 0.005,
        "memory": 2e8,
        "params": 5e6,
        "macs": 1e9,
        "size": 2e7,
        "throughput": 100,
        "accuracy": 0.9,
    }
    assert str(budget).startswith("latency<=5ms, memory<=200MB")
    assert budget.accuracy_bound() == Bound("accuracy", ">=", 0.9)
    assert [bound.cost for bound in budget.cost_bounds()] == [bound.cost for bound in budget.bounds][:-1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("latency<5ms", 0.005),
        ("latency =< 5 ms", 0.005),
        ("Latency≤5 MS", 0.005),
        ("latency<=0.005s", 0.005),
        ("latency<=.005 sec", 0.005),
        ("latency<=5e-3 seconds", 0.005),
        ("latency<=5000us", 0.005),
        ("latency<=5000µs", 0.005),
        ("latency<=5000μs", 0.005),
        ("latency<=5000000ns", 0.005),
        ("latency-p95 <= 5 msec", 0.005),
        ("latency p95 <= 5 milliseconds", 0.005),
        ("latency_e2e<=1.5 min", 90),
        ("memory<=200MB", 2e8),
        ("memory<=0.2gb", 2e8),
        ("memory<=200000 kB", 2e8),
        ("memory<=200M", 2e8),
        ("memory<=200MiB", 200 * 2**20),
        ("size<=1 GiB", 2**30),
        ("size<=20 megabytes", 2e7),
        ("size<=512 bytes", 512),
        ("params<=5M", 5e6),
        ("params<=5m", 5e6),
        ("params <= 5 million", 5e6),
        ("params<=5e6", 5e6),
        ("params<=5000k parameters", 5e6),
        ("params<=0.005 B", 5e6),
        ("macs<=1.2GMACs", 1.2e9),
        ("MACs<=1200 MMACs", 1.2e9),
        ("macs<=1.2 billion", 1.2e9),
        ("throughput>100 images/s", 100),
        ("throughput>=100fps", 100),
        ("throughput≥100 Hz", 100),
        ("throughput=>100/s", 100),
        ("throughput>=6000/min", 100),
        ("throughput>=100 images per second", 100),
        ("throughput>=100 img / s", 100),
        ("accuracy>=90%", 0.9),
        ("accuracy>=90 percent", 0.9),
        ("accuracy>0.9", 0.9),
        ("accuracy>=1", 1),
        ("accuracy>=100%", 1),
    ],
)
def test_units_a_person_would_write(text, value):
    assert only(text).value == value


@pytest.mark.parametrize("separator", [",", ", ", ";", " and ", " AND ", ", and ", ";and "])
def test_separators(separator):
    assert Budget.parse(f"latency<=5ms{separator}accuracy>=90%") == Budget.parse("latency<=0.005s, accuracy>=0.9")


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_no_budget(nothing):
    assert Budget.parse(nothing) == Budget() == Budget.parse(str(Budget()))


def test_a_budget_is_taken_as_it_is():
    budget = Budget.parse("latency<=5ms")
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latncy<=5ms", "unknown cost 'latncy'. Did you mean 'latency'? Known: accuracy, latency, latency_e2e"),
        ("flops<=5G", "Known: accuracy, latency,"),
        ("latency<=5", "latency<=5 lacks a unit. Write latency<=5ms. Known: ms, s, us"),
        ("memory<=200", "memory<=200 lacks a unit. Write memory<=200MB."),
        ("throughput>=100", "throughput>=100 lacks a unit. Write throughput>=100/s."),
        ("latency<=5 parsec", "unknown unit 'parsec' of latency. Known: ms, s, us, ns, min."),
        ("latency<=5m", "unknown unit 'm' of latency. Known: ms"),
        ("memory<=5ms", "unknown unit 'ms' of memory. Known: MB"),
        ("params<=5MB", "unknown unit 'MB' of params. Known: M"),
        ("macs<=1GFLOPs", "unknown unit 'GFLOPs' of macs. Known: G"),
        ("params<=5.000.000", "unknown unit '.000' of params"),
        ("latency>=5ms", "latency is bounded from above. Write latency<=5ms."),
        ("accuracy<=0.9", "accuracy is bounded from below. Write accuracy>=0.9."),
        ("throughput<100/s", "throughput is bounded from below. Write throughput>=100/s."),
        ("latency=5ms", "latency is bounded with <=, not with =."),
        ("latency<=0ms", "latency<=0ms: the limit must be a finite number above 0"),
        ("latency<=-5ms", "must be a finite number above 0"),
        ("latency<=nan", "must be a finite number above 0"),
        ("latency<=inf ms", "must be a finite number above 0"),
        ("memory<=-infinity", "must be a finite number above 0"),
        ("params<=1e999", "must be a finite number above 0"),
        ("latency<=1e-999ms", "must be a finite number above 0"),
        ("accuracy>=90", "accuracy is at most 1. Write accuracy>=0.9 or accuracy>=90%."),
        ("accuracy>=101%", "accuracy is at most 1"),
        ("latency<=5ms, latency<=4ms", "latency is bounded twice: latency<=5ms and latency<=4ms. Keep one."),
        ("latency<=5ms,, accuracy>=0.9", "has an empty clause"),
        ("latency<=5ms,", "has an empty clause"),
        ("and latency<=5ms", "has an empty clause"),
        ("50ms", "cannot read '50ms': a bound is a cost, <= or >=, and an amount"),
        ("latency 50ms", "cannot read 'latency 50ms'"),
        ("latency<=fast", "'fast' is not an amount. Write it like latency<=5ms."),
        ("latency<=", "'' is not an amount"),
        ("params<=5,000,000", "cannot read '000'"),
    ],
)
def test_refusals(text, words):
    with pytest.raises(SettingError) as error:
        Budget.parse(text)
    assert words in str(error.value)


def test_bounds_made_in_code_are_checked_too():
    with pytest.raises(SettingError, match="unknown cost 'speed'"):
        Bound("speed", "<=", 1.0)
    with pytest.raises(SettingError, match="finite"):
        Bound("latency", "<=", math.nan)


def test_met_by():
    latency, throughput = only("latency<=10ms"), only("throughput>=100/s")
    assert latency.met_by(0.010)
    assert not latency.met_by(0.010, margin=1.05)
    assert latency.met_by(0.0095, margin=1.05)
    assert throughput.met_by(100)
    assert not throughput.met_by(104, margin=1.05)
    assert throughput.met_by(106, margin=1.05)
    assert not latency.met_by(math.nan)
    assert not throughput.met_by(math.nan)


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("latency", 0.0234, "23.4 ms"),
        ("latency", 0.00085, "850 us"),
        ("latency", 0.9996, "1 s"),
        ("latency_e2e", 90, "90 s"),
        ("params", 5_717_416, "5.72 M"),
        ("params", 5_700_000, "5.7 M"),
        ("params", 17, "17"),
        ("macs", 1_253_683_200, "1.25 G"),
        ("size", 21.9e6, "21.9 MB"),
        ("memory", 999_600, "1 MB"),
        ("memory", 2.5e12, "2500 GB"),
        ("throughput", 1234.5, "1230/s"),
        ("throughput", 0.5, "0.5/s"),
        ("accuracy", 0.934, "93.4 %"),
        ("accuracy", 1, "100 %"),
        ("latency", 0, "0 us"),
    ],
)
def test_format_cost(cost, value, text):
    assert format_cost(cost, value) == text


LIMITS = st.floats(min_value=1e-6, max_value=1e15)
BOUNDS = st.sampled_from(sorted(COSTS)).flatmap(
    lambda cost: st.builds(
        Bound,
        st.just(cost),
        st.just(COSTS[cost].operator),
        st.floats(min_value=1e-6, max_value=1) if cost == "accuracy" else LIMITS,
    )
)


@settings(deadline=None)
@given(st.lists(BOUNDS, unique_by=lambda bound: bound.cost).map(lambda bounds: Budget(tuple(bounds))))
def test_text_and_back(budget):
    again = Budget.parse(str(budget))
    assert again == budget
    assert str(again) == str(budget)
    assert json.loads(json.dumps([bound.value for bound in again.bounds])) == [bound.value for bound in budget.bounds]


@pytest.mark.parametrize(
    ("bound", "units"),
    [
        ("latency<=", ("ns", "us", "ms", "s")),
        ("memory<=", ("B", "kB", "MB", "GB")),
        ("params<=", ("", "k", "M", "G")),
        ("macs<=", ("MACs", "kMACs", "MMACs", "GMACs")),
        ("throughput>=", ("/s", "/ms", "/us", "/ns")),
    ],
)
@settings(deadline=None)
@given(amount=st.integers(1, 10**12))
def test_the_same_bound_in_other_units(bound, units, amount):
    bounds = [only(f"{bound}{Decimal(amount).scaleb(-3 * place)}{unit}") for place, unit in enumerate(units)]
    assert all(other == bounds[0] for other in bounds)


@settings(deadline=None)
@given(BOUNDS)
def test_what_is_shown_can_be_typed(bound):
    typed = only(f"{bound.cost}{bound.operator}{format_cost(bound.cost, bound.value)}")
    assert typed.value == pytest.approx(bound.value, rel=0.00501)


@settings(deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"\A[a-z_]{0,8}[<>=]{1,2}[0-9.e-]{0,6} ?[a-zA-Z/%]{0,4}[,;]?\Z"))
def test_any_text_is_read_or_refused_in_words(text):
    with contextlib.suppress(SettingError):
        budget = Budget.parse(text)
        assert Budget.parse(str(budget)) == budget
