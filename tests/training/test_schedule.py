import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvit.training import schedule as schedule_module
from anyvit.training.schedule import VALIDATIONS, Schedule, lr_factor


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(schedule_module, "time", clock)
    return clock


@given(st.floats(0.01, 0.9), st.floats(0, 1))
def test_learning_rate_rises_then_falls_to_its_end(warmup, final):
    assert lr_factor(0, warmup=warmup, final=final) == 0.01
    assert lr_factor(warmup, warmup=warmup, final=final) == pytest.approx(1)
    assert lr_factor(1, warmup=warmup, final=final) == pytest.approx(final)
    falling = [lr_factor(warmup + (1 - warmup) * i / 9, warmup=warmup, final=final) for i in range(10)]
    assert falling == sorted(falling, reverse=True)


def test_without_warmup_the_rate_starts_at_its_peak():
    assert lr_factor(0, warmup=0, final=0) == 1


@given(st.floats(0.1, 200), st.integers(1, 50))
def test_epochs_fix_the_moments_of_validation(epochs, steps_per_epoch):
    schedule = Schedule(epochs, None, steps_per_epoch)
    last = schedule.total_steps
    due = [step for step in range(last + 1) if schedule.validation_due(step)]
    assert due[-1] == last
    assert len(due) <= VALIDATIONS
    assert [schedule.finished(step) for step in range(last + 1)] == [False] * last + [True]
    if epochs == int(epochs) <= VALIDATIONS:
        assert due == [steps_per_epoch * (epoch + 1) for epoch in range(int(epochs))]


def test_clock_leaves_time_for_what_follows_the_last_step(clock):
    schedule = Schedule(None, 60, steps_per_epoch=10)
    schedule.resume(20, validation_seconds=2)  # an earlier session
    schedule.checkpoint_seconds, schedule.step_seconds = 2, 1
    assert not schedule.finished(5)
    clock.now += 34.5  # 54.5 of 60 seconds are over: a step, and 1.25 times what validation and checkpoint took
    assert schedule.finished(5)
    assert not schedule.validation_due(5)  # it would come before the last one, which is near
    assert schedule.progress(5) == pytest.approx(54.5 / 55)
    assert schedule.seconds_left(5, (0, 0)) == pytest.approx(5.5)


def test_clock_keeps_validation_a_small_share(clock):
    schedule = Schedule(None, 1000, steps_per_epoch=10)
    assert not schedule.validation_due(1)
    clock.now += 50
    assert schedule.validation_due(2)
    schedule.validated(20)
    clock.now += 199
    assert not schedule.validation_due(3)
    clock.now += 2
    assert schedule.validation_due(3)


def test_of_epochs_and_seconds_the_first_ends_the_run(clock):
    schedule = Schedule(2, 100, steps_per_epoch=10)
    assert schedule.finished(20)
    assert schedule.progress(10) == 0.5
    clock.now += 90
    assert schedule.progress(10) == pytest.approx(0.9)


def test_time_left_is_told_from_the_pace(clock):
    schedule = Schedule(2, None, steps_per_epoch=10)
    assert schedule.seconds_left(0, (0, 0)) is None
    clock.now += 5
    assert schedule.seconds_left(5, (0, 0)) == pytest.approx(15)
