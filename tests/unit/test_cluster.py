"""A job that cannot fit is told before it waits for ever."""

import pytest

from liser_dist.cluster import Capacity, require_fit
from liser_dist.errors import CapacityError
from liser_dist.spec import DistillSpec


def job(workers: int = 1, **resources: float) -> DistillSpec:
    return DistillSpec.model_validate(
        {
            "name": "a-job",
            "data": {"unlabelled": "shards"},
            "teachers": {"speech": {"kind": "mock"}},
            "train": {"workers": workers},
            "resources": resources,
        }
    )


def test_the_job_that_hung_is_refused() -> None:
    # 2 decoders, a teacher, 2 workers on 4 CPUs: nothing is left for reading.
    hung = job(workers=2, decoders=(2, 2), reader_cpus=1.0)
    with pytest.raises(CapacityError, match=r"needs at least 6 CPUs.*2 CPUs are missing"):
        require_fit(hung, Capacity("the Ray cluster", ({"CPU": 4.0},)))
    require_fit(hung, Capacity("the Ray cluster", ({"CPU": 6.0},)))


def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(CapacityError, match="1 GPUs are missing"):
        require_fit(job(teacher_gpus=1), Capacity("this machine", ({"CPU": 16.0},)))


def test_enough_in_all_and_too_little_on_each_node_is_refused() -> None:
    four = tuple({"CPU": 8.0, "GPU": 1.0} for _ in range(4))
    with pytest.raises(CapacityError, match="train workers want 1 CPUs and 2 GPUs"):
        require_fit(job(worker_gpus=2), Capacity("the Ray cluster", four))
    require_fit(job(workers=4, worker_gpus=1), Capacity("the Ray cluster", four))
