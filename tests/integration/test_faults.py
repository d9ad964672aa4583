"""Each clip is trained once per epoch, as the weights show, whatever fault is injected."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from liser_dist.benchmarks.fault_runs import inject_faults
from liser_dist.benchmarks.faults import FAULTS
from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.config.distill import DistillSpec
from liser_dist.data.shards import write_shards
from tests.integration.conftest import SMALL, merged

Broken = Callable[..., str]
FULL = "disk full at checkpoint"
TOGETHER = [
    (
        "decoding child killed",
        "decode actor killed",
        "teacher actor killed",
        "train worker killed",
        "S3 server restarted",
        "driver killed, 1 worker instead of 2",
    ),
    ("elastic resize", FULL),
    ("network partition",),
]
NEEDS_ROOT = (FULL, "network partition")  # to mount a small disk, to create network namespaces


@pytest.fixture(scope="module")
def many(films: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    """174 clips in seven shards."""
    place = str(tmp_path_factory.mktemp("many"))
    samples = ((f"clip-{n:03d}", films[n % 29], {"faces": []}) for n in range(6 * 29))
    write_shards(samples, place, clips_per_shard=25)
    return place


@pytest.fixture
def broken(many: str, tmp_path: Path) -> Broken:
    """Runs a small counting job with these faults, looks at every clip, and returns its log."""
    change = {
        "data": {"unlabelled": many},
        "teachers": {"speech": {"kind": "mock", "seconds_per_clip": 0.03}},
        "student": {"kind": "counting"},
        "train": {"workers": 2, "labelled_batch_size": 0, "checkpoint_every": 1},
        "resources": {"worker_cpus": 1.0},
    }
    job = BenchmarkJob(DistillSpec.model_validate(merged(SMALL, change)))

    def run(*names: str) -> str:
        rows = inject_faults(job, names, tmp_path, seed=len(names))
        assert [row.fault for row in rows] == list(names)
        for row in rows:
            assert (row.total, row.trained_once, row.lost, row.twice) == (174, 174, 0, 0), row
            assert row.left_behind == []
        return (tmp_path / "job.log").read_text()

    return run


@pytest.mark.parametrize(
    "names",
    [TOGETHER[0], *(pytest.param(names, marks=pytest.mark.long) for names in TOGETHER[1:])],
    ids=[names[0] for names in TOGETHER],
)
def test_no_clip_is_lost_and_none_trained_twice(broken: Broken, names: tuple[str, ...]) -> None:
    try:
        log = broken(*names)
    except subprocess.CalledProcessError:
        if others := [name for name in names if name not in NEEDS_ROOT]:
            broken(*others)
        pytest.skip(f"this user may not mount disks or create namespaces: {NEEDS_ROOT}")
    if FULL in names:
        assert "training continues without the checkpoint" in log


def test_each_fault_is_injected() -> None:
    # A driver that is killed and resubmitted, as it was and with more workers: test_resume. An S3
    # that is busy: test_flaky_s3. A node that is lost: test_pools. A notice takes minutes.
    # A gradient that is not finite: test_loop. Jobs that end with a user's error and are submitted
    # again: `jobs/benchmark.py faults` alone, as is what takes ten minutes.
    elsewhere = {
        "non-finite gradient",
        "elastic resize, default checkpoints",
        "storage fails on one worker",
        "store write fails once",
        "teacher file replaced",
        "days in fast motion",
        "node lost",
        "S3 answers 503 for 20 s",
        "driver killed, resubmitted",
        "driver killed, 2 workers instead of 1",
        "node lost after notice",
    }
    assert {name for names in TOGETHER for name in names} == set(FAULTS) - elsewhere
