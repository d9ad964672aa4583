"""The plain loop and the costs of its stages, on a job with mock teachers and a small student."""

import pytest
import torch

from liser_dist.benchmarks.baseline import InlineJob, join_targets, run_baseline
from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.benchmarks.stage_costs import time_stages
from liser_dist.config.distill import DistillSpec
from liser_dist.data.shards import write_shards
from liser_dist.records import Clip
from tests.films import small_film

CLIPS = 20


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkJob:
    shards = str(tmp_path_factory.mktemp("clips"))
    films = [small_film(seed) for seed in range(3)]
    write_shards(((f"{n:03d}", films[n % 3], {"faces": []}) for n in range(CLIPS)), shards, 7)
    return BenchmarkJob(
        DistillSpec.model_validate(
            {
                "name": "small",
                "data": {"unlabelled": shards},
                "clip": {"faces": 1, "face_px": 16, "window_s": 1.0},
                "teachers": {
                    "speech": {"kind": "mock", "seconds_per_clip": 0.001},
                    "face": None,
                    "batch_size": 4,
                },
                "student": {"kind": "cnn", "width": 8},
                "train": {"batch_size": 8, "labelled_batch_size": 0},
            }
        )
    )


def test_each_stage_has_a_cost_and_a_missing_teacher_has_none(job: BenchmarkJob) -> None:
    threads = torch.get_num_threads()
    try:
        costs = time_stages(job)
    finally:
        torch.set_num_threads(threads)
    assert costs.decode_s > 0
    assert costs.student_s > 0
    assert costs.face_s == 0
    parts = (costs.decode_s, costs.speech_s, costs.face_s, costs.student_s)
    assert costs.total_s == pytest.approx(sum(parts))


def test_the_plain_loop_trains_every_clip_once(job: BenchmarkJob) -> None:
    steps = list(run_baseline(job.spec))
    assert sum(clips for _, clips in steps) == CLIPS
    assert [at for at, _ in steps] == sorted(at for at, _ in steps)


def test_targets_of_a_missing_teacher_are_empty(job: BenchmarkJob) -> None:
    inline = InlineJob(job.spec, torch.device("cpu"))
    assert set(inline.teachers) == {"speech"}
    clips = [Clip(key=f"{n}", shard="s", index=n, epoch=0) for n in range(3)]
    examples = join_targets(clips, {})
    assert [example.key for example in examples] == ["0", "1", "2"]
