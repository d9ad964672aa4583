"""Times are counted from the first step on, over restarts; alarms are due once per period."""

import pytest

from liser_dist.training import timing
from liser_dist.training.timing import Every, StepTimer


class FakeTime:
    """Stands in for the `time` module."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    return fake


def test_waits_before_the_first_step_do_not_count(clock: FakeTime) -> None:
    timer = StepTimer()
    with timer.waiting():
        clock.now += 50
    timer.stepped()
    assert (timer.training_s, timer.wait_share, timer.speed(10)) == (0, 0, 0)
    with timer.waiting():
        clock.now += 1
    clock.now += 3
    timer.stepped()
    assert (timer.training_s, timer.wait_share, timer.speed(10)) == (4, 0.25, 2.5)
    assert timer.first_step_at == 150


def test_a_restart_continues_the_times(clock: FakeTime) -> None:
    timer = StepTimer()
    timer.restore({"training_s": 10.0, "waited_s": 5.0})
    assert timer.training_s == 10
    timer.stepped()
    clock.now += 10
    timer.stepped()
    assert timer.state() == {"training_s": 20.0, "waited_s": 5.0}
    assert timer.wait_share == 0.25


def test_an_alarm_is_due_once_per_period(clock: FakeTime) -> None:
    first, later = Every(5, at_once=True), Every(5, at_once=False)
    assert (first.due(), later.due()) == (True, False)
    clock.now += 4.9
    assert not first.due()
    assert not later.due()
    clock.now += 0.2
    assert (first.due(), later.due()) == (True, True)
    assert (first.due(), later.due()) == (False, False)
