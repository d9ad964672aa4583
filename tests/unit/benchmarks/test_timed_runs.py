"""Speeds are taken from the middle of an epoch, CPU times from the processes of each part."""

import pytest

from liser_dist.benchmarks.timed_runs import RAY_DAEMONS, TimedRun, Timeline, part_of

# Two epochs of 100 clips: 10 clips/s in the first, 50 in the second, after a slow first step.
FIRST = [(30.0 + n, 10 * n) for n in range(1, 11)]
SECOND = [(40.0 + 0.2 * n, 100 + 10 * n) for n in range(1, 11)]
TIMELINE = Timeline(started=20.0, steps=[*FIRST, *SECOND])


def test_a_timeline_has_the_speed_of_each_epoch() -> None:
    assert TIMELINE.first_step_s == 11.0
    assert TIMELINE.all_steps_s == pytest.approx(11.0)
    assert TIMELINE.steady_part(0, 100) == (33.0, 36.0, 30)
    assert TIMELINE.clips_per_s(0, 100) == pytest.approx(10)
    assert TIMELINE.clips_per_s(100, 100) == pytest.approx(50)


def test_cpu_time_per_clip_is_that_of_the_steady_part() -> None:
    # Half a core decodes all the time; a worker that starts late takes a fifth of one.
    samples = [(30.0 + n, {"decoding": 0.5 * n, "training": 0.2 * max(0, n - 2)}) for n in range(9)]
    del samples[3][1]["training"]
    run = TimedRun(TIMELINE, samples)
    found = run.cpu_per_clip(100)
    assert found["decoding"] == pytest.approx(0.05)
    assert found["training"] == pytest.approx(0.8 / 3 / 10)


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("ray::MapWorker(MapBatches(Decode)).submit", "decoding"),
        ("python -c from liser_dist.data.child_process import ...", "decoding"),
        ("ray::MapWorker(MapBatches(Teach))", "teaching"),
        ("ray::RayTrainWorker.execute", "training"),
        ("python jobs/distill.py spec.yaml", "data stream and control"),
        ("/usr/bin/raylet --node_id=1", RAY_DAEMONS),
    ],
)
def test_a_process_belongs_to_a_part_by_its_title(title: str, part: str) -> None:
    assert part_of(title) == part
