"""The policy, decision by decision and played through: no clock, no thread, no model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anyvit.deploy.serving.controller import Controller, Policy, Work
from anyvit.deploy.serving.service_times import ServiceTimes
from anyvit.deploy.serving.simulator import Arrival, simulate
from anyvit.errors import SettingError

ACCURACIES = {"large": 0.9, "middle": 0.85, "small": 0.7}
FIRST_MS, NEXT_MS = {"large": 8.0, "middle": 4.0, "small": 2.0}, {"large": 6.0, "middle": 2.5, "small": 1.0}
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
OBJECTIVE = 0.05


def seconds(id, images):
    return 1e-3 * (FIRST_MS[id] + (images - 1) * NEXT_MS[id])


def controller(ids=ACCURACIES, objective=OBJECTIVE, policy=None):
    times = ServiceTimes({id: {size: seconds(id, size) for size in SIZES} for id in ids})
    return Controller({id: ACCURACIES[id] for id in ids}, times, objective, policy or Policy())


def come(control, now, images=1, *, deadline=None, allowed=None):
    """So many images of requests of their own, which must be welcome."""
    works = []
    for _ in range(images):
        until = now + (control.objective if deadline is None else deadline)
        assert control.refuse(1, until, now, allowed) is None
        works.append(Work(now, until, allowed))
        control.add(works[-1])
    return works


def noisy(slow=1.0, *, seed=1, ids=FIRST_MS):
    """Batches take what the table says, times `slow`, with noise; one in a hundred half as long again."""
    draw = np.random.default_rng(seed)

    def truth(id, images, now):
        pace = slow(now) if callable(slow) else slow
        return seconds(id, images) * pace * math.exp(draw.normal(0, 0.05)) * (1.5 if draw.random() < 0.01 else 1.0)

    return truth


def stream(rate, length, *, begin=0.0, seed=0, **options):
    """Arrivals of a Poisson process."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * length) + 10)
    times = begin + np.cumsum(gaps)
    return [Arrival(float(at), **options) for at in times[times < begin + length]]


def test_an_idle_server_answers_with_the_most_accurate_candidate_at_once():
    control = controller()
    (work,) = come(control, 1.0)
    decision = control.next(1.0)
    assert (decision.candidate, decision.batch, decision.expired) == ("large", (work,), ())
    assert control.next(1.01).candidate is None


def test_what_waits_goes_together_in_the_order_of_deadlines():
    control = controller(["small"])
    late, early = come(control, 0.0, deadline=0.04)[0], come(control, 0.0, deadline=0.03)[0]
    assert control.next(0.001).batch == (early, late)


def test_a_batch_takes_at_most_half_of_the_objective():
    control = controller(["large"], objective=0.2, policy=Policy(efficiency=1.0))
    come(control, 0.0, 14)
    size = len(control.next(0.0).batch)
    following = SIZES[SIZES.index(size) + 1]
    assert control.times.safe("large", size, 0.0) <= 0.1 < control.times.safe("large", following, 0.0)


def test_batches_have_sizes_that_were_measured():
    control = controller(["small"])
    come(control, 0.0, 11)
    assert [len(control.next(0.0).batch) for _ in range(3)] == [8, 3, 0]


def work_off(control, now):
    """Answer all that waits. Returns who did, and when it is done."""
    answered = []
    while (decision := control.next(now)).candidate:
        took = seconds(decision.candidate, len(decision.batch))
        now += took
        control.done(decision, took, now)
        assert all(now <= work.deadline for work in decision.batch)
        answered.append(decision.candidate)
    return answered, now


@pytest.mark.parametrize(("images", "candidate"), [(3, "large"), (10, "middle"), (30, "small")])
def test_a_burst_is_relieved_by_the_most_accurate_that_is_in_time_and_the_level_stays(images, candidate):
    control = controller()
    come(control, 0.0, images)
    answered, now = work_off(control, 0.0)
    assert answered[0] == candidate
    assert (control.candidate, control.switches) == ("large", 0)
    assert control.reliefs == (0 if candidate == "large" else len(answered) - answered.count("large"))
    come(control, now + 0.2)
    assert control.next(now + 0.2).candidate == "large"


def test_a_level_is_kept_while_the_load_needs_it_and_climbed_when_it_has_been_calm():
    control = controller()
    simulate(control, stream(250, 5), noisy())
    levels = []
    for now in (5.1, 9.0):  # the load was just now; it has been calm for long enough
        come(control, now)
        work_off(control, now)
        levels.append(control.candidate)
    assert levels == ["middle", "large"]


@pytest.mark.parametrize(("images", "candidate"), [(1, "large"), (3, "large"), (4, "middle"), (9, "middle")])
def test_a_more_accurate_candidate_than_the_level_answers_what_it_is_early_with(images, candidate):
    control = controller(policy=Policy(least_hold_s=math.inf))  # a level that is left is not taken again
    simulate(control, stream(250, 5), noisy())
    assert control.candidate == "middle"
    control.times = controller().times
    come(control, 8.0, images)  # long after, so that nobody else is expected
    assert control.next(8.0).candidate == candidate
    assert control.candidate == "middle"


def test_a_load_between_two_candidates_is_shared_by_them():
    ids = ["large", "small"]
    play = simulate(controller(ids), stream(1.5 * 4 / seconds("large", 4), 20), noisy())
    assert 0.2 < play.shares(2)["large"] < 0.6
    assert play.in_time(OBJECTIVE) >= 0.99
    assert len(play.levels) <= 10


def test_work_is_refused_when_even_the_fastest_would_be_late_and_told_when_to_come_back():
    control = controller(["small"])
    admitted = 0
    while (wait := control.refuse(1, OBJECTIVE, 0.0)) is None:
        control.add(Work(0.0, OBJECTIVE))
        admitted += 1
    assert 0 < wait < 0.1
    assert admitted == len(control.waiting)
    assert seconds("small", admitted) <= OBJECTIVE < 3 * seconds("small", admitted)


def test_a_deadline_that_an_idle_server_cannot_keep_is_refused_for_good():
    assert controller().refuse(1, 0.001, 0.0) == math.inf


def test_expected_images_count_until_they_are_there_or_given_up():
    control = controller(["large"])
    assert [control.refuse(1, OBJECTIVE, 0.0) is None for _ in range(9)] == [True] * 6 + [False] * 3
    control.give_up(6)
    assert control.refuse(1, OBJECTIVE, 0.0) is None
    assert control.expected == 1


def test_expired_work_is_dropped_and_not_computed():
    control = controller(["large"])
    (work,) = come(control, 0.0)
    decision = control.next(OBJECTIVE)
    assert (decision.candidate, decision.expired) == (None, (work,))
    assert control.waiting == []


def test_cancelled_work_is_not_computed():
    control = controller()
    first, second = come(control, 0.0, 2)
    assert control.cancel(first)
    assert control.next(0.0).batch == (second,)
    assert not control.cancel(second)  # it is on its way


def test_work_of_an_engine_that_died_waits_in_its_old_place():
    control = controller(["small"])
    come(control, 0.0, 3)
    decision = control.next(0.0)
    control.failed(0.001)
    for work in reversed(decision.batch):
        control.again(work)
    assert control.next(0.001).batch == decision.batch


def test_only_candidates_that_are_allowed_answer():
    control = controller()
    (work,) = come(control, 0.0, allowed=frozenset({"middle"}))
    assert control.next(0.001).candidate == "middle"
    come(control, 0.0, 12)
    small_only = come(control, 0.002, allowed=frozenset({"small"}))[0]
    asked = {}
    while (decision := control.next(0.002)).candidate:
        asked |= dict.fromkeys(decision.batch, decision.candidate)
    assert asked[small_only] == "small"
    assert work not in asked
    assert control.waiting == []


def test_it_needs_a_candidate():
    with pytest.raises(SettingError, match="needs one candidate"):
        controller([])


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 1.0, 1.3, 1.6, 2.0, 2.4, 2.9])
def test_at_every_load_it_beats_both_ends(load):
    """Right answers in time, of all requests: not below either fixed server, and above both between their strengths."""
    arrivals = stream(load * 4 / seconds("large", 4), 20)

    def worth(ids):
        play = simulate(controller(ids), arrivals, noisy())
        kept = [f for f in play.fates if f.latency is not None and f.latency <= OBJECTIVE]
        return sum(ACCURACIES[fate.candidate] for fate in kept) / len(arrivals), play

    adaptive, play = worth(ACCURACIES)
    largest, smallest = worth(["large"])[0], worth(["small"])[0]
    assert adaptive >= max(largest, smallest) - 0.005
    if 1.0 <= load <= 2.5:
        assert adaptive > max(largest, smallest) + 0.02
    answered = [fate.latency for fate in play.fates if fate.latency is not None]
    assert np.quantile(answered, 0.99) <= OBJECTIVE


@pytest.mark.parametrize("load", [0.6, 0.9, 1.2, 2.0])
def test_a_steady_load_does_not_make_it_flap(load):
    """A level lasts for hundreds of batches: it is left at most once in two seconds."""
    control = controller()
    play = simulate(control, stream(load * 4 / seconds("large", 4), 60), noisy())
    late = [at for at, _ in play.levels if at > 20]
    assert len(late) <= 40 / 2


def test_it_falls_at_once_and_climbs_back_when_the_load_falls():
    heavy, light = 2.0 * 4 / seconds("large", 4), 20
    arrivals = stream(light, 5) + stream(heavy, 10, begin=5.0, seed=1) + stream(light, 30, begin=15.0, seed=2)
    play = simulate(controller(), arrivals, noisy())
    assert play.in_time(OBJECTIVE) >= 0.99
    assert play.shares(0, 5).get("large", 0) > 0.95
    assert play.shares(7, 15).get("large", 0) < 0.1
    assert play.shares(25, 45)["large"] > 0.95


def test_a_machine_that_becomes_slower_is_learned():
    """Twice as slow for ten seconds: the objective is kept meanwhile, and afterwards the old level is taken again."""
    arrivals = stream(0.6 * 4 / seconds("large", 4), 60)
    play = simulate(controller(), arrivals, noisy(lambda now: 2.2 if 10 <= now < 20 else 1.0))
    assert play.in_time(OBJECTIVE, 12, 20) >= 0.97
    assert play.shares(12, 20).get("large", 0.0) < 0.5
    assert play.shares(40, 60)["large"] > 0.5


def test_overload_is_shed_and_the_rest_is_on_time():
    strength = 24 / seconds("small", 24)
    play = simulate(controller(), stream(2 * strength, 20), noisy())
    answered = [fate for fate in play.fates if fate.done is not None]
    assert len(answered) >= 0.8 * strength * 20
    assert sum(fate.latency <= OBJECTIVE for fate in answered) >= 0.99 * len(answered)
    assert sum(fate.why == "expired" for fate in play.fates) <= 0.01 * len(play.fates)


def test_clients_that_leave_cost_nothing_but_the_batch_in_flight():
    """At twice the load half of the clients leave early: at most the batch that runs is computed without a reader."""
    rate = 2 * 4 / seconds("large", 4)
    stay, leave = stream(rate / 2, 30), stream(rate / 2, 30, seed=5, leaves=0.004)
    arrivals = sorted(stay + leave, key=lambda arrival: arrival.at)
    play = simulate(controller(), arrivals, noisy())
    in_vain = [begin for begin, _, _, readers in play.batches if not readers]
    left = [fate for fate in play.fates if fate.why == "left"]
    assert len(left) > 100
    for begin in in_vain:  # its readers were there when it began
        assert any(fate.arrival.at <= begin < fate.arrival.at + fate.arrival.leaves for fate in left)
    assert play.in_time(OBJECTIVE) >= 0.99
    assert len(play.levels) <= 30


def test_a_play_is_the_same_twice():
    arrivals = stream(150, 10)
    first, second = (simulate(controller(), arrivals, noisy()) for _ in range(2))
    assert [(f.done, f.candidate) for f in first.fates] == [(f.done, f.candidate) for f in second.fates]


def test_one_client_in_a_hurry_does_not_make_others_late():
    control = controller(["small"])
    come(control, 0.0, 20)
    before = [work.deadline for work in control.waiting]
    refused = 0
    for _ in range(30):
        if control.refuse(1, 0.012, 0.0) is None:
            control.add(Work(0.0, 0.012))
        else:
            refused += 1
    now, done = 0.0, 0
    while (decision := control.next(now)).batch:
        assert decision.expired == ()
        now += seconds("small", len(decision.batch))
        done += sum(work.deadline in before and now <= work.deadline for work in decision.batch)
        control.done(decision, seconds("small", len(decision.batch)), now)
    assert refused
    assert done == 20
