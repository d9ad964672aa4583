"""A job that cannot fit is told before it waits for ever."""

from typing import Any

import pytest

from liser_dist.cluster import Capacity, Node, most_workers, require_fit
from liser_dist.errors import CapacityError
from liser_dist.spec import DistillSpec


def job(workers: int | list[int] = 1, **resources: Any) -> DistillSpec:
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
    # 2 decoders, a teacher, 2 workers on 4 CPUs.
    hung = job(workers=2, decoders=(2, 2))
    with pytest.raises(CapacityError, match=r"needs at least 5 CPUs.*1 CPUs are missing"):
        require_fit(hung, Capacity("the Ray cluster", (Node({"CPU": 4.0}),)))
    require_fit(hung, Capacity("the Ray cluster", (Node({"CPU": 5.0}),)))


def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(CapacityError, match="1 GPUs are missing"):
        require_fit(job(teacher_gpus=1), Capacity("this machine", (Node({"CPU": 16.0}),)))


def test_enough_in_all_and_too_little_on_each_node_is_refused() -> None:
    four = tuple(Node({"CPU": 8.0, "GPU": 1.0}) for _ in range(4))
    with pytest.raises(CapacityError, match="train workers want 1 CPUs and 2 GPUs"):
        require_fit(job(worker_gpus=2), Capacity("the Ray cluster", four))
    require_fit(job(workers=4, worker_gpus=1), Capacity("the Ray cluster", four))


def test_a_stage_counts_only_what_its_pool_has() -> None:
    head = Node({"CPU": 0.0}, "head")
    decoders = Node({"CPU": 16.0}, "decoders")
    gpu = {"CPU": 4.0, "GPU": 1.0}
    spec = job(teacher_gpus=1, worker_gpus=1)
    whole = (head, decoders, Node(gpu, "teachers"), Node(gpu, "students"))
    require_fit(spec, Capacity("the Ray cluster", whole))
    both_gpus = (head, decoders, Node(gpu, "teachers"), Node(gpu, "teachers"))
    with pytest.raises(CapacityError, match="no node of the Ray cluster has the label `pool=stud"):
        require_fit(spec, Capacity("the Ray cluster", both_gpus))
    no_gpu = (head, decoders, Node({"CPU": 64.0}, "teachers"), Node(gpu, "students"))
    with pytest.raises(CapacityError, match="the pool teachers of the Ray cluster has 0, so 1 GPU"):
        require_fit(spec, Capacity("the Ray cluster", no_gpu))
    shared = job(teacher_gpus=1, worker_gpus=1, pools={"students": "teachers"})
    require_fit(shared, Capacity("the Ray cluster", both_gpus))


def test_workers_of_a_pool_stay_when_the_nodes_of_others_are_gone() -> None:
    students = tuple(Node({"CPU": 4.0, "GPU": 1.0}, "students") for _ in range(3))
    spec = job(workers=[1, 4], worker_gpus=1)
    assert most_workers(spec, Capacity("the Ray cluster", students)) == 3
    other = (Node({"CPU": 16.0}, "decoders"), Node({"CPU": 4.0}, "teachers"))
    assert most_workers(spec, Capacity("the Ray cluster", students + other)) == 3
    shared = job(workers=[1, 4], worker_gpus=1, teacher_gpus=1, pools={"teachers": "students"})
    assert most_workers(shared, Capacity("the Ray cluster", students)) == 2


def test_what_trains_nothing_needs_no_node_for_it() -> None:
    without = Capacity(
        "the Ray cluster", (Node({"CPU": 4}, "decoders"), Node({"CPU": 4}, "teachers"))
    )
    require_fit(job(), without, workers=0)
    with pytest.raises(CapacityError, match="pool=students"):
        require_fit(job(), without)
