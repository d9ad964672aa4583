"""Injects faults into running jobs and counts from the weights how often each clip was trained on.

1. A job with a counting student (`students/counting.py`) runs on a local cluster, started as a user
   would start it.
2. At random moments a process is killed, a node is cut off, or a disk is filled up.
3. The weights of the last checkpoint show how often each clip was trained on, so the result does
   not rely on what the job itself reports.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from liser_dist.benchmarks.faults import FAULTS, TEACHER, Fault
from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.benchmarks.testbed.flaky_s3 import FlakyS3
from liser_dist.benchmarks.testbed.local_cluster import (
    BUCKET,
    HEAD_CPUS,
    HOST,
    ClusterJob,
    LocalCluster,
)
from liser_dist.benchmarks.testbed.network import NodeNetwork
from liser_dist.config.base import Record
from liser_dist.runs.checkpoints import load_checkpoint
from liser_dist.students.counting import COUNTS


class FaultRow(Record):
    """What became of the clips of a run in which one fault was injected."""

    fault: str
    injected_at: int  # clips trained by then, counted once per epoch
    recovered_s: float  # until the next checkpoint with more clips in it
    total: int  # clips of the run
    trained_once: int  # in each epoch
    lost: int
    twice: int
    rejected: int
    left_behind: list[str]  # processes and shared memory, 10 s after the job's end


def inject_faults(
    job: BenchmarkJob, names: Sequence[str], folder: Path, seed: int = 0
) -> list[FaultRow]:
    """Run a job once, and inject each named fault in turn at a random moment.

    Args:
        job: its student counts clips.
        names: keys of `FAULTS`.
        folder: for the run, its log and, where a fault needs it, the S3 bucket.
        seed: of the moments and of the processes that are hit.

    Returns:
        One row per fault. The clips are counted once, after the end of the job.

    Raises:
        RuntimeError: the job failed, or ended before a fault could be injected.
        TimeoutError: the job did not reach the next step in time.
        CalledProcessError: a fault needs a small disk, which this user may not mount.
    """
    faults = [FAULTS[name] for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(_prepared(job, faults, folder))
        run.rng.seed(seed)
        steps = job.count_clips() * run.spec.train.epochs // run.spec.train.batch_size
        moments = _draw_moments(steps, len(names), run.rng)
        run.start()
        injected = [_inject(run, name, moment) for name, moment in zip(names, moments, strict=True)]
        run.wait()
        left_behind = run.left_behind()
        counts = count_trained_clips(run)
    return [
        FaultRow(
            fault=name,
            injected_at=clips,
            recovered_s=recovered_s,
            left_behind=left_behind,
            **counts,
        )
        for name, clips, recovered_s in injected
    ]


@contextlib.contextmanager
def _prepared(job: BenchmarkJob, faults: Sequence[Fault], folder: Path) -> Iterator[ClusterJob]:
    """Yield the job on the cluster, S3 server and disk that the faults need, not yet started."""
    train = {name: value for fault in faults for name, value in fault.train.items()}
    bucket = folder / BUCKET
    bucket.mkdir(exist_ok=True)
    changes: dict[str, Any] = {"train": train, "output": str(bucket / "runs")}
    for fault in faults:
        changes |= fault.spec
    if slow := [fault.seconds_per_clip for fault in faults if fault.seconds_per_clip]:
        speech = job.spec.model_dump()["teachers"]["speech"]
        changes["teachers"] = {"speech": {**speech, "seconds_per_clip": max(slow)}}
    if any(fault.real_teacher for fault in faults):
        place = _copy_teacher(job, folder / TEACHER)
        changes["teachers"] = {"speech": {"kind": "huggingface", "model": place}}
    nodes = max(fault.student_nodes for fault in faults)
    with contextlib.ExitStack() as stack:
        s3 = None
        network = stack.enter_context(NodeNetwork()) if nodes else None
        if any(fault.small_disk for fault in faults):
            stack.enter_context(_small_disk(bucket))
        if any(fault.on_s3 for fault in faults):
            s3 = stack.enter_context(FlakyS3(folder, network.s3_host if network else HOST))
            changes["output"] = f"s3://{BUCKET}/runs"
            changes["data"] = {"unlabelled": _copy_to_bucket(job.spec.data.unlabelled, bucket)}
        environment = s3.environment if s3 else None
        cluster = stack.enter_context(
            LocalCluster(
                HEAD_CPUS,
                environment=environment,
                pool="head" if nodes else None,
                network=network,
            )
        )
        run = ClusterJob(job.variant(**changes), folder, cluster, s3, network)
        run.nodes += [cluster.add_node(cpus=1, pool="students") for _ in range(nodes)]
        yield run


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of 2 MB on a folder.

    Raises:
        CalledProcessError: this user may not mount.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _copy_teacher(job: BenchmarkJob, target: Path) -> str:
    """Copy the speech teacher of the job's synthetic corpus to a folder, and return its path."""
    assert job.spec.synthetic is not None
    shutil.copytree(job.spec.synthetic.teachers()["speech"], target, dirs_exist_ok=True)
    return str(target)


def _copy_to_bucket(shards: str, bucket: Path) -> str:
    target = bucket / "clips"
    target.mkdir(exist_ok=True)
    for file in Path(shards).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return f"s3://{BUCKET}/clips"


def _draw_moments(steps: int, count: int, rng: random.Random) -> list[int]:
    """Return steps in rising order, in the first half of a run: some work must be left."""
    return sorted(rng.randint(1, steps // 2) for _ in range(count))


def _inject(run: ClusterJob, name: str, moment: int) -> tuple[str, int, float]:
    """Inject a fault at a step.

    Returns:
        The fault, the clips trained by then, and the seconds until a checkpoint had more of them.
    """
    run.wait_for_step(moment)
    time.sleep(run.rng.uniform(0, 0.3))
    step, started = run.step, time.monotonic()
    FAULTS[name].inject(run)
    if run.ended:
        raise RuntimeError(
            f"the job ended before the fault {name!r} could be injected; see {run.log}"
        )
    run.wait_for_step(run.step + 1)
    return name, step * run.spec.train.batch_size, time.monotonic() - started


def count_trained_clips(run: ClusterJob) -> dict[str, int]:
    """Count from the weights how often each clip was trained in each epoch: once is right."""
    (result,) = run.runs.glob("*/result.json")
    checkpoint = load_checkpoint(str(run.newest_checkpoint))
    counts = checkpoint.students[COUNTS].view(run.spec.train.epochs, -1)
    missing = (counts == 0).any(dim=0)
    rejected = pq.read_table(result.parent / "rejected.parquet", columns=["shard", "index"])
    distinct = rejected.group_by(["shard", "index"]).aggregate([]).num_rows
    return {
        "total": counts.shape[1],
        "trained_once": int((counts == 1).all(dim=0).sum()),
        "lost": int(missing.sum()) - distinct,
        "twice": int((counts > 1).any(dim=0).sum()),
        "rejected": distinct,
    }
