"""Whatever is killed, cut off or filled up, each clip is trained once an epoch: by the weights."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from liser_dist.faults import FAULTS, inject_faults
from liser_dist.shards import write_shards
from liser_dist.spec import DistillSpec
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
]


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
    spec = DistillSpec.model_validate(merged(SMALL, change))

    def run(*names: str) -> str:
        rows = inject_faults(spec, names, tmp_path, seed=len(names))
        assert [row.fault for row in rows] == list(names)
        for row in rows:
            assert (row.total, row.trained_once, row.lost, row.twice) == (174, 174, 0, 0), row
            assert row.left_behind == []
        return (tmp_path / "job.log").read_text()

    return run


@pytest.mark.parametrize("names", TOGETHER, ids=[names[0] for names in TOGETHER])
def test_no_clip_is_lost_and_none_trained_twice(broken: Broken, names: tuple[str, ...]) -> None:
    try:
        log = broken(*names)
    except subprocess.CalledProcessError:
        broken(*(name for name in names if name != FULL))
        pytest.skip("this user may not mount a small disk, so that it did not get full")
    if FULL in names:
        assert "is lost, training goes on" in log


def test_each_fault_is_injected() -> None:
    # A driver that is killed and resubmitted, as it was and with more workers: test_resume. An S3
    # that is busy: test_flaky_s3. A node that is lost: test_pools. A notice takes minutes.
    elsewhere = {
        "node lost",
        "S3 answers 503 for 20 s",
        "driver killed, resubmitted",
        "driver killed, 2 workers instead of 1",
        "node lost after notice",
    }
    assert {name for names in TOGETHER for name in names} == set(FAULTS) - elsewhere
