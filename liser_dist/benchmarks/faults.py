"""Defines the faults that are injected into running jobs, and the job and cluster for each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from liser_dist.benchmarks.testbed.local_cluster import (
    BUCKET,
    RECOVERY_LIMIT_S,
    ClusterJob,
    wait_until,
)
from liser_dist.config.distill import TrainSpec

NOTICE_S = 10
STORE, TEACHER = "targets", "speech-teacher"  # names in the folder of the benchmark


def kill_worker(job: ClusterJob) -> None:
    """Kill a train worker."""
    job.kill_one(lambda: job.cluster.workers("RayTrainWorker"))


def kill_decoder(job: ClusterJob) -> None:
    """Kill a decode actor."""
    job.kill_one(lambda: job.cluster.workers("MapBatches(Decode)"))


def kill_decoder_child(job: ClusterJob) -> None:
    """Kill the child process of a decode actor."""
    job.kill_one(job.decoder_children)


def kill_teacher(job: ClusterJob) -> None:
    """Kill a teacher actor."""
    job.kill_one(lambda: job.cluster.workers("MapBatches(Teach)"))


def kill_driver(job: ClusterJob) -> None:
    """Kill the driver and submit the job again."""
    job.resubmit()


def kill_driver_and_take_one_worker(job: ClusterJob) -> None:
    """Kill the driver and submit the job again with one train worker."""
    job.resubmit(workers=1)


def kill_driver_and_take_two_workers(job: ClusterJob) -> None:
    """Kill the driver and submit the job again with two train workers."""
    job.resubmit(workers=2)


def add_node(job: ClusterJob) -> None:
    """Add a node with room for one more worker, and wait until an elastic job uses it."""
    job.nodes.append(job.cluster.add_node(cpus=1))
    _wait_for_worker_on(job, job.nodes[-1])


def lose_node(job: ClusterJob) -> None:
    """Lose a node on which a worker of the job runs; one is added first where there is none."""
    if not job.nodes:
        add_node(job)
    job.cluster.lose_node(job.nodes.pop())


def lose_node_after_notice(job: ClusterJob) -> None:
    """Add a node, announce its preemption while a worker runs there, and lose it at that time."""
    add_node(job)
    job.cluster.give_notice(job.nodes[-1], NOTICE_S)
    time.sleep(NOTICE_S)
    job.cluster.lose_node(job.nodes.pop())


def _wait_for_worker_on(job: ClusterJob, node: int) -> None:
    """Wait for a train worker on a node, and for a checkpoint after it has started."""

    def is_at_work() -> bool:
        return bool(job.cluster.workers("RayTrainWorker", node))

    wait_until(lambda: is_at_work() or job.ended, RECOVERY_LIMIT_S, "a worker on the new node")
    job.wait_for_step(job.step + 1)


def restart_s3(job: ClusterJob) -> None:
    """Restart the S3 server, with 3 s in between."""
    assert job.s3 is not None
    job.s3.restart(down_s=3.0)


def refuse_s3(job: ClusterJob) -> None:
    """Let the S3 server answer 503 to every request for 20 s."""
    assert job.s3 is not None
    job.s3.refuse(status=503, seconds=20.0)


def fill_disk(job: ClusterJob) -> None:
    """Fill the disk of the run until a checkpoint could not be written."""
    failures = _count_failed_checkpoints(job)
    ballast = job.runs / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(2**12))
            file.flush()
    wait_until(
        lambda: _count_failed_checkpoints(job) > failures or job.ended,
        RECOVERY_LIMIT_S,
        "a checkpoint that cannot be written",
    )
    ballast.unlink()


def _count_failed_checkpoints(job: ClusterJob) -> int:
    return job.log.read_text().count("training continues without the checkpoint")


def refuse_store_write(job: ClusterJob) -> None:
    """Let the S3 server refuse parts of the target store, from the next part on, for 20 s."""
    assert job.s3 is not None
    s3, refused = job.s3, job.s3.count["refused"]
    s3.refuse(503, RECOVERY_LIMIT_S, method="PUT", path=f"{BUCKET}/{STORE}")
    wait_until(
        lambda: s3.count["refused"] > refused or job.ended, RECOVERY_LIMIT_S, "a refused part"
    )
    s3.refuse(503, 20.0, method="PUT", path=f"{BUCKET}/{STORE}")


def fail_storage_of_one_worker(job: ClusterJob) -> None:
    """Deny one train worker access to S3; once the job has ended with 2, submit it again."""
    assert job.s3 is not None
    assert job.network is not None
    address = job.network.s3_address(_node_of_worker(job))
    job.s3.refuse(403, RECOVERY_LIMIT_S, client=address)
    job.wait_for_user_error(f"s3://{BUCKET}")
    job.s3.refuse(seconds=0.0)
    job.start()


def partition_network(job: ClusterJob) -> None:
    """Cut the node of the train worker off from the cluster; it still reaches S3 for 20 s."""
    spare = job.cluster.add_node(cpus=1, pool="students")
    job.nodes.append(spare)
    node = _node_of_worker(job)
    assert job.network is not None
    job.network.unplug(node)
    wait_until(
        lambda: bool(job.cluster.workers("RayTrainWorker", spare)) or job.ended,
        RECOVERY_LIMIT_S,
        "a worker on the other node",
    )
    time.sleep(_CUT_OFF_S)
    job.cluster.lose_node(node)


def _node_of_worker(job: ClusterJob) -> int:
    return next(node for node in job.nodes if job.cluster.workers("RayTrainWorker", node))


def replace_teacher(job: ClusterJob) -> None:
    """Replace a teacher's weights and kill its actor; put them back when the job has ended."""
    weights = job.folder / TEACHER / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + bytes(4))
    kill_teacher(job)
    job.wait_for_user_error("teachers.speech")
    weights.write_bytes(content)
    job.start()


def live_through_days(job: ClusterJob) -> None:
    """Kill a worker 12 times, pause the bucket for 15 minutes, give a notice during a notice."""
    assert job.s3 is not None
    for _ in range(12):
        kill_worker(job)
        job.wait_for_step(job.step + 1)
    job.s3.refuse(status=503, seconds=_PAUSE_S)
    time.sleep(_PAUSE_S)
    job.wait_for_step(job.step + 1)
    for _ in range(2):
        job.nodes.append(job.cluster.add_node(cpus=1))
    _wait_for_worker_on(job, job.nodes[-1])
    for node in job.nodes:
        job.cluster.give_notice(node, 2 * NOTICE_S)
        time.sleep(NOTICE_S)
    for node in job.nodes:
        job.cluster.lose_node(node)
    job.nodes.clear()


def do_nothing(_: ClusterJob) -> None:
    """The spec of the job is the fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and the settings of the job and its surroundings under which it has an effect.

    Attributes:
        inject: injects the fault into a running job.
        train: changes of the spec's `train`.
        spec: changes of other sections of the spec.
        seconds_per_clip: of the mock speech teacher. A slow teacher makes the job last long
            enough, or keeps the decoders busy until its end.
        on_s3: True if the job reads and writes on S3.
        small_disk: True if the run is written to a disk of 2 MB.
        student_nodes: Number of nodes for train workers, each with a network of its own; 0: the
            job runs on the head alone.
        real_teacher: True if the speech teacher is a model in a folder.
        moments: Number of moments of one job at which the benchmark injects it.
    """

    inject: Callable[[ClusterJob], None]
    train: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    seconds_per_clip: float | None = None
    on_s3: bool = False
    small_disk: bool = False
    student_nodes: int = 0
    real_teacher: bool = False
    moments: int = 3


_CUT_OFF_S = 20.0
_PAUSE_S = 900.0
_ELASTIC = {"workers": [1, 5], "resize_every_s": 2.0, "checkpoint_every_s": 2.0, "epochs": 6}
_DEFAULT_CHECKPOINTS = {
    name: TrainSpec.model_fields[name].default
    for name in ("checkpoint_every", "checkpoint_every_s", "resize_every_s")
}
_ON_STUDENT_NODES = {
    "resources": {"pools": {"decoders": "head", "teachers": "head", "students": "students"}}
}
FAULTS: Mapping[str, Fault] = {
    "train worker killed": Fault(kill_worker),
    "decode actor killed": Fault(kill_decoder, {"epochs": 6}, seconds_per_clip=0.005),
    "decoding child killed": Fault(kill_decoder_child, {"epochs": 6}, seconds_per_clip=0.005),
    "teacher actor killed": Fault(kill_teacher),
    "elastic resize": Fault(add_node, _ELASTIC, seconds_per_clip=0.1),
    "elastic resize, default checkpoints": Fault(
        add_node, {**_ELASTIC, **_DEFAULT_CHECKPOINTS, "epochs": 5}, seconds_per_clip=0.3,
        moments=1,
    ),
    "node lost": Fault(lose_node, _ELASTIC, seconds_per_clip=0.1),
    "node lost after notice": Fault(
        lose_node_after_notice, {**_ELASTIC, "max_failures": 0}, seconds_per_clip=0.12
    ),
    "driver killed, resubmitted": Fault(kill_driver),
    "driver killed, 1 worker instead of 2": Fault(kill_driver_and_take_one_worker),
    "driver killed, 2 workers instead of 1": Fault(
        kill_driver_and_take_two_workers, {"workers": 1}
    ),
    "S3 server restarted": Fault(restart_s3, on_s3=True),
    "S3 answers 503 for 20 s": Fault(refuse_s3, on_s3=True),
    "disk full at checkpoint": Fault(
        fill_disk, {"epochs": 3}, seconds_per_clip=0.1, small_disk=True
    ),
    "store write fails once": Fault(
        refuse_store_write, {"epochs": 3},
        # A window an epoch, so that parts are written in each.
        {"targets": {"store": f"s3://{BUCKET}/{STORE}", "windows": 3}},
        seconds_per_clip=0.03, on_s3=True,
    ),
    "storage fails on one worker": Fault(
        fail_storage_of_one_worker, {"epochs": 4},
        {"targets": {"store": f"s3://{BUCKET}/{STORE}"}, **_ON_STUDENT_NODES},
        seconds_per_clip=0.1, on_s3=True, student_nodes=2,
    ),
    "network partition": Fault(
        partition_network, {"workers": 1, "checkpoint_every": 1, "epochs": 3}, _ON_STUDENT_NODES,
        seconds_per_clip=0.1, on_s3=True, student_nodes=1,
    ),
    "days in fast motion": Fault(
        live_through_days, {**_ELASTIC, "epochs": 12, "max_failures": 3}, seconds_per_clip=0.1,
        on_s3=True, moments=1,
    ),
    "teacher file replaced": Fault(replace_teacher, {"epochs": 6}, real_teacher=True),
    "non-finite gradient": Fault(
        do_nothing, spec={"student": {"kind": "counting", "infinite_steps": [3, 11]}}
    ),
}  # fmt: skip
