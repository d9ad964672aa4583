"""What a person is told while a job stands still."""

import time

import pytest

from liser_dist.desk import Progress
from liser_dist.screen import counted, watched


@pytest.mark.parametrize(("lack", "told"), [("2 CPUs are missing", True), ("", False)])
def test_a_job_that_stands_still_says_what_it_waits_for(
    lack: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with watched(lambda: Progress(steps=3), lambda: lack, still_s=0.05):
        time.sleep(0.5)
    assert ("waiting for a larger cluster: 2 CPUs" in capsys.readouterr().out) is told


def test_a_log_shows_how_far_the_teaching_is(capsys: pytest.CaptureFixture[str]) -> None:
    with counted(40, plain_every_s=0.0) as count:
        count(16)
        count(16)
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["16/40", "32/40", "32/40"]
