"""Measures the memory of a job's processes, which must not grow with the number of clips.

1. A job with a counting student (`students/counting.py`) and teachers that take no time runs on a
   local cluster.
2. The private memory of each of the job's processes is measured early in the job, and again after
   many more clips.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.benchmarks.testbed.local_cluster import (
    BUCKET,
    HEAD_CPUS,
    JOB_START_LIMIT_S,
    SHARED_MEMORY,
    ClusterJob,
    LocalCluster,
    wait_until,
)
from liser_dist.config.base import Record

# A decoding child is replaced from time to time. The child of the job's only decoder is as old at
# 5,000 clips as its predecessor was at 1,000.
CLIP_MARKS = (1000, 5000)
SAMPLES, SAMPLE_EVERY_S = 5, 0.4
# So many clips are left at the second mark that no stage has ended, however far ahead it is.
CLIPS_LEFT = 3000
_CLIP_LIMIT_S = 0.5
OBJECT_STORE = "object store, peak"
# Process titles that Ray gives to a job's tasks and actors. Between two tasks a worker has none.
READER = "MapBatches(_read)"
TITLES: Mapping[str, str] = {
    "train worker": "ray::RayTrainWorker",
    "decoder": "MapBatches(Decode)",
    "teacher": "MapBatches(Teach)",
    "train controller": "ray::TrainController",
    "dataset manager": "ray::DatasetManager",
    "split coordinator": "ray::SplitCoordinator",
    "run coordinator": "ray::RunCoordinator",
}


class MemoryRow(Record):
    """Private memory of one process, or of that process and its replacement, at both marks."""

    kind: str
    bytes_before: int
    bytes_after: int
    growth: float  # share

    @classmethod
    def of(cls, kind: str, before: int, after: int) -> MemoryRow:
        """Return the row of a process, with its growth."""
        growth = after / before - 1
        return cls(kind=kind, bytes_before=before, bytes_after=after, growth=growth)


def watch_memory(
    job: BenchmarkJob, folder: Path, marks: tuple[int, int] = CLIP_MARKS
) -> list[MemoryRow]:
    """Run a job and measure each of its processes at two points of the run.

    Args:
        job: it is run with a counting student and mock teachers.
        folder: for the run and its log.
        marks: clips trained or rejected, counted once per epoch.

    Returns:
        One row per process that exists at both marks, or has been replaced by then.

    Raises:
        RuntimeError: the job ended before the second mark.
        TimeoutError: the job did not reach a mark in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    long_enough = job.counting(
        teachers={"speech": {"kind": "mock"}, "face": {"kind": "mock"}},
        train={"epochs": math.ceil((marks[1] + CLIPS_LEFT) / job.count_clips())},
        output=str(folder / BUCKET / "runs"),
    )
    with LocalCluster(HEAD_CPUS) as cluster:
        run = ClusterJob(long_enough, folder, cluster)
        run.start()
        readers = _find_readers(run)
        before, after = [_measure_at(run, mark, readers) for mark in marks]
        run.kill_driver()
    return [row for kind in before for row in _compare(kind, before[kind], after.get(kind, []))]


def _find_readers(run: ClusterJob) -> list[psutil.Process]:
    """Wait for the readers: they have a title only while they read."""
    _wait(run, lambda: bool(run.cluster.workers(READER)), JOB_START_LIMIT_S, "a reader")
    return run.cluster.workers(READER)


def _measure_at(
    run: ClusterJob, mark: int, readers: Sequence[psutil.Process]
) -> dict[str, list[int]]:
    """Return the bytes of each process, by kind: medians of samples taken from this mark on."""
    steps = math.ceil(mark / run.spec.train.batch_size)
    limit_s = JOB_START_LIMIT_S + _CLIP_LIMIT_S * mark
    _wait(run, lambda: run.step >= steps, limit_s, f"{mark} clips")
    sizes: dict[tuple[str, int], list[int]] = defaultdict(list)
    for _ in range(SAMPLES):
        for kind, process in [*_processes(run), *(("reader", reader) for reader in readers)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                private = _private_bytes(process)
                sizes[kind, process.pid].append(private)
        time.sleep(SAMPLE_EVERY_S)
    medians: dict[str, list[int]] = defaultdict(list)
    for (kind, _), samples in sorted(sizes.items()):
        medians[kind].append(round(statistics.median(samples)))
    # Ray's object store keeps every page that it has ever touched, so this is its maximum so far.
    medians[OBJECT_STORE].append(psutil.disk_usage(str(SHARED_MEMORY)).used)
    return medians


def _private_bytes(process: psutil.Process) -> int:
    """Return the bytes that would be freed if the process ended, whatever else is running.

    The unique set size would not do: it also counts pages of the object store and of libraries
    as soon as no other process uses them, and so jumps by 200 MB when another process ends.
    """
    return sum(
        part.private_dirty
        for part in process.memory_maps()
        if not part.path.startswith(f"{SHARED_MEMORY}/")
    )


def _wait(run: ClusterJob, holds: Callable[[], bool], limit_s: float, event: str) -> None:
    wait_until(lambda: holds() or run.ended, limit_s, event)
    if run.ended:
        raise RuntimeError(f"the job ended while the benchmark waited for {event}; see {run.log}")


def _processes(run: ClusterJob) -> Iterator[tuple[str, psutil.Process]]:
    """Yield kind and process, of all but the readers."""
    assert run.driver is not None
    yield "driver", psutil.Process(run.driver.pid)
    for process in run.decoder_children():
        yield "decoding child", process
    for kind, title in TITLES.items():
        for process in run.cluster.workers(title):
            yield kind, process


def _compare(kind: str, before: Sequence[int], after: Sequence[int]) -> Iterator[MemoryRow]:
    """Yield a row per process, or one of the largest where their number has changed."""
    if before and after:
        same = len(before) == len(after)
        for pair in zip(before, after, strict=True) if same else [(max(before), max(after))]:
            yield MemoryRow.of(kind, *pair)
