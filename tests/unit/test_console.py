"""What is printed while a job is running or stalled."""

import time

import pytest

from liser_dist.cluster.capacity import Need
from liser_dist.cluster.forecast import Forecast, Stage
from liser_dist.config.distill import DistillSpec
from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.study import StudySpec
from liser_dist.console import print_readers, print_steps, show_clip_count, show_progress
from liser_dist.data.shard_list import Shard
from liser_dist.runs.progress import Progress


@pytest.mark.parametrize(("missing", "printed"), [("2 CPUs are missing", True), ("", False)])
def test_a_job_that_stands_still_says_what_it_waits_for(
    missing: str, printed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_progress(lambda: Progress(steps=3), lambda: missing, stalled_s=0.05):
        time.sleep(0.5)
    assert ("waiting for a larger cluster, because 2 CPUs" in capsys.readouterr().out) is printed


def test_a_log_shows_how_far_the_teaching_is(capsys: pytest.CaptureFixture[str]) -> None:
    with show_clip_count(40, plain_every_s=0.0) as count:
        count(16)
        count(16)
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["16/40", "32/40", "32/40"]


def spec_of(**train: int) -> DistillSpec:
    return DistillSpec.model_validate(
        {
            "name": "a",
            "data": {"unlabelled": "a", "validation": "b"},
            "teachers": {"speech": {"kind": "mock"}},
            "train": train,
        }
    )


def test_a_check_says_how_many_steps_the_job_takes_and_warns_of_few(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_steps(spec_of(epochs=3, batch_size=256), (1, 1), 21)
    first, *warnings = capsys.readouterr().out.splitlines()
    assert first == (
        "training: 21 clips x 3 epochs / 256 clips per step (`train.batch_size`) = 1 step"
    )
    assert len(warnings) == 2
    assert warnings[0].startswith("WARNING: 1 step of training: a student learns little")
    assert "`train.validate_every` is 200" in warnings[1]


def test_a_check_of_a_long_job_warns_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_steps(spec_of(epochs=3, batch_size=8), (1, 4), 1000)
    print_steps(spec_of(epochs=3, batch_size=8), (0, 0), 1)  # it only fills the target store
    assert capsys.readouterr().out == (
        "training: 1,000 clips x 3 epochs / 8 clips per step (`train.batch_size`) = 375 steps\n"
    )


def test_a_check_of_a_study_says_how_many_steps_a_cell_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = {"kind": "backbone", "model": "m"}
    spec = StudySpec.model_validate(
        {
            "name": "a",
            "data": {"unlabelled": "a", "labelled": "b", "test": "c"},
            "teachers": {"speech": backbone, "face": backbone},
            "loss": {"embedding": 1.0},
            "targets": {"store": "d"},
            "train": {"epochs": 2, "batch_size": 10},
        }
    )
    print_steps(spec, (0, 0), 25)
    first, warning = capsys.readouterr().out.splitlines()
    assert first.startswith("each student: 25 clips x 2 epochs")
    assert first.endswith("= 6 steps")
    assert warning.startswith("WARNING: 6 steps of training")


@pytest.mark.parametrize(
    ("folder", "speed", "readers", "warns"),
    [
        ("s3://clips", 1000.0, 2, True),
        ("s3://clips", 1000.0, 5, False),
        ("s3://clips", None, 2, False),
        ("/clips", 1000.0, 2, False),
    ],
)
def test_a_check_warns_of_too_few_readers_for_the_speed_that_it_forecasts(
    folder: str, speed: float | None, readers: int, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = Forecast((Stage(Need("decoders", "", 1, 1.0), 1, speed),), {}, None)
    shards = [Shard(f"{folder}/{n}.tar", 40_000_000, "v", 100) for n in range(3)]
    print_readers(ResourcesSpec(readers=readers), forecast, shards)
    printed = capsys.readouterr().out
    assert ("0.40 MB per clip" in printed) is warns
    assert ("takes about 5 readers" in printed) is warns
