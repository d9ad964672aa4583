"""A job that does not fit the cluster is refused instead of waiting forever."""

from typing import Any

import pytest

from liser_dist.cluster.capacity import Capacity, Node, format_amount, require_fit, workers_that_fit
from liser_dist.config.distill import DistillSpec
from liser_dist.errors import CapacityError


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


def check_fit(spec: DistillSpec, capacity: Capacity) -> None:
    require_fit(spec.resources, spec.train.worker_bounds[0], capacity)


def elastic_workers(spec: DistillSpec, capacity: Capacity) -> int:
    return workers_that_fit(spec.resources, spec.train.worker_bounds, capacity)


def test_the_job_that_hung_is_refused() -> None:
    # 2 decoders, a teacher, 2 workers on 4 CPUs.
    hung = job(workers=2, decoders=(2, 2))
    with pytest.raises(CapacityError, match=r"needs at least 5 CPUs.*1 CPU is missing"):
        check_fit(hung, Capacity("the Ray cluster", (Node({"CPU": 4.0}),)))
    check_fit(hung, Capacity("the Ray cluster", (Node({"CPU": 5.0}),)))


def test_everything_that_is_missing_is_in_one_message() -> None:
    spec = job(workers=2, worker_cpus=0.5, teacher_gpus=1)
    small = Capacity("the Ray cluster", (Node({"CPU": 2.0}),))
    with pytest.raises(CapacityError, match=r"1 CPU is missing; .* 1 GPU is missing; lower"):
        check_fit(spec, small)
    pools = (Node({"CPU": 1.0}, "decoders"), Node({"CPU": 1.0}, "teachers"))
    with pytest.raises(CapacityError) as caught:
        check_fit(spec, Capacity("the Ray cluster", pools))
    no_pool, shortage = str(caught.value).splitlines()
    assert no_pool.startswith("no node of the Ray cluster has the label `pool=students`")
    assert "the pool teachers of the Ray cluster has 0, so 1 GPU is missing" in shortage


def test_amounts_have_the_right_number() -> None:
    assert [format_amount(n, "CPU") for n in (0, 0.5, 1, 2)] == [
        "0 CPUs", "0.5 CPUs", "1 CPU", "2 CPUs",
    ]  # fmt: skip


def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(CapacityError, match="1 GPU is missing"):
        check_fit(job(teacher_gpus=1), Capacity("this machine", (Node({"CPU": 16.0}),)))


def test_enough_in_all_and_too_little_on_each_node_is_refused() -> None:
    four = tuple(Node({"CPU": 8.0, "GPU": 1.0}) for _ in range(4))
    with pytest.raises(CapacityError, match="train workers need 1 CPU and 2 GPUs"):
        check_fit(job(worker_gpus=2), Capacity("the Ray cluster", four))
    check_fit(job(workers=4, worker_gpus=1), Capacity("the Ray cluster", four))


def test_a_stage_counts_only_what_its_pool_has() -> None:
    head = Node({"CPU": 0.0}, "head")
    decoders = Node({"CPU": 16.0}, "decoders")
    gpu = {"CPU": 4.0, "GPU": 1.0}
    spec = job(teacher_gpus=1, worker_gpus=1)
    whole = (head, decoders, Node(gpu, "teachers"), Node(gpu, "students"))
    check_fit(spec, Capacity("the Ray cluster", whole))
    both_gpus = (head, decoders, Node(gpu, "teachers"), Node(gpu, "teachers"))
    with pytest.raises(CapacityError, match="no node of the Ray cluster has the label `pool=stud"):
        check_fit(spec, Capacity("the Ray cluster", both_gpus))
    no_gpu = (head, decoders, Node({"CPU": 64.0}, "teachers"), Node(gpu, "students"))
    with pytest.raises(CapacityError, match="the pool teachers of the Ray cluster has 0, so 1 GPU"):
        check_fit(spec, Capacity("the Ray cluster", no_gpu))
    shared = job(teacher_gpus=1, worker_gpus=1, pools={"students": "teachers"})
    check_fit(shared, Capacity("the Ray cluster", both_gpus))


def test_workers_of_a_pool_stay_when_the_nodes_of_others_are_gone() -> None:
    students = tuple(Node({"CPU": 4.0, "GPU": 1.0}, "students") for _ in range(3))
    spec = job(workers=[1, 4], worker_gpus=1)
    assert elastic_workers(spec, Capacity("the Ray cluster", students)) == 3
    other = (Node({"CPU": 16.0}, "decoders"), Node({"CPU": 4.0}, "teachers"))
    assert elastic_workers(spec, Capacity("the Ray cluster", students + other)) == 3
    shared = job(workers=[1, 4], worker_gpus=1, teacher_gpus=1, pools={"teachers": "students"})
    assert elastic_workers(shared, Capacity("the Ray cluster", students)) == 2


def test_what_trains_nothing_needs_no_node_for_it() -> None:
    without = Capacity(
        "the Ray cluster", (Node({"CPU": 4}, "decoders"), Node({"CPU": 4}, "teachers"))
    )
    require_fit(job().resources, 0, without)
    with pytest.raises(CapacityError, match="pool=students"):
        check_fit(job(), without)
