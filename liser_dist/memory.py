"""Watch the memory of a job's processes: it must not grow with the number of clips.

1. the job, with a student that counts and teachers that take no time, runs on a cluster of its own
2. when it has seen so many clips, and again when it has seen many more, each of its processes is
   asked how much memory it has written that is its own
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

from liser_dist.faults import BUCKET, HEAD_CPUS, BrokenRun
from liser_dist.local_cluster import LocalCluster, wait_until
from liser_dist.results import Record
from liser_dist.shards import find_shards
from liser_dist.spec import DistillSpec

# A decoding child of the job's only decoder is as old at 5,000 clips as its ancestor was at 1,000.
MARKS = (1000, 5000)
SAMPLES, APART_S = 5, 0.4
# So much is left to do at the second mark that no stage is done, however far it is ahead.
CLIPS_LEFT = 3000
START_LIMIT_S, CLIP_LIMIT_S = 240.0, 0.5
SHARED_MEMORY = "/dev/shm/"
OBJECT_STORE = "object store, at most"
# What Ray calls a job's tasks and actors. Between two tasks a process bears no name.
READER = "MapBatches(_read)"
TITLES: Mapping[str, str] = {
    "train worker": "ray::RayTrainWorker",
    "decoder": "MapBatches(Decode)",
    "teacher": "MapBatches(Teach)",
    "train controller": "ray::TrainController",
    "dataset manager": "ray::DatasetManager",
    "split coordinator": "ray::SplitCoordinator",
    "desk": "ray::Desk",
}


class MemoryRow(Record):
    """The own memory of one process, or of the one that took its place, at both marks."""

    kind: str
    bytes_before: int
    bytes_after: int
    growth: float  # share

    @classmethod
    def of(cls, kind: str, before: int, after: int) -> MemoryRow:
        growth = after / before - 1
        return cls(kind=kind, bytes_before=before, bytes_after=after, growth=growth)


def watch_memory(
    spec: DistillSpec, folder: Path, marks: tuple[int, int] = MARKS
) -> list[MemoryRow]:
    """A row for each process of the job that is there at both marks, or has a successor.

    Args:
        marks: clips trained or rejected, counted once an epoch.

    Raises:
        RuntimeError: the job ended before the second mark.
        TimeoutError: it did not get there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with LocalCluster(HEAD_CPUS) as cluster:
        run = BrokenRun(_long_enough(spec, folder, marks[1]), folder, cluster)
        run.start()
        readers = _find_readers(run)
        before, after = [_measure_at(run, mark, readers) for mark in marks]
        assert run.job is not None
        run.job.kill()
        run.job.wait()
    return [row for kind in before for row in _compare(kind, before[kind], after.get(kind, []))]


def _long_enough(spec: DistillSpec, folder: Path, clips: int) -> DistillSpec:
    """The job, counting and unhindered by its teachers, for more clips than so many."""
    found = sum(shard.clips for shard in find_shards(spec.data.unlabelled, "data.unlabelled"))
    content = spec.model_dump()
    content["teachers"] |= {"speech": {"kind": "mock"}, "face": {"kind": "mock"}}
    content["student"] = {"kind": "counting"}
    content["train"] |= {"epochs": math.ceil((clips + CLIPS_LEFT) / found)}
    return DistillSpec.model_validate(content | {"output": str(folder / BUCKET / "runs")})


def _find_readers(run: BrokenRun) -> list[psutil.Process]:
    _wait(run, lambda: bool(run.cluster.workers(READER)), START_LIMIT_S, "a reader is at work")
    return run.cluster.workers(READER)


def _measure_at(
    run: BrokenRun, mark: int, readers: Sequence[psutil.Process]
) -> dict[str, list[int]]:
    """Bytes of each process, by kind: the medians of samples from this mark on."""
    steps = math.ceil(mark / run.spec.train.batch_size)
    limit_s = START_LIMIT_S + CLIP_LIMIT_S * mark
    _wait(run, lambda: run.step >= steps, limit_s, f"it has seen {mark} clips")
    sizes: dict[tuple[str, int], list[int]] = defaultdict(list)
    for _ in range(SAMPLES):
        for kind, process in [*_processes(run), *(("reader", reader) for reader in readers)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                own = _own_bytes(process)
                sizes[kind, process.pid].append(own)
        time.sleep(APART_S)
    found: dict[str, list[int]] = defaultdict(list)
    for (kind, _), samples in sorted(sizes.items()):
        found[kind].append(round(statistics.median(samples)))
    # Ray's store lies in pages that it touched once and keeps.
    found[OBJECT_STORE].append(psutil.disk_usage(SHARED_MEMORY).used)
    return found


def _own_bytes(process: psutil.Process) -> int:
    """What would be given back if it ended, whatever else runs on the machine.

    Not its unique set size: that counts pages of the object store and of libraries too, as soon as
    no other process has them in use, and so jumps by 200 MB when another one ends.
    """
    return sum(
        part.private_dirty
        for part in process.memory_maps()
        if not part.path.startswith(SHARED_MEMORY)
    )


def _wait(run: BrokenRun, holds: Callable[[], bool], limit_s: float, what: str) -> None:
    wait_until(lambda: holds() or run.ended, limit_s, what)
    if run.ended:
        raise RuntimeError(f"the job ended before {what}: {run.log}")


def _processes(run: BrokenRun) -> Iterator[tuple[str, psutil.Process]]:
    """Kind and process, of all but the readers."""
    assert run.job is not None
    yield "driver", psutil.Process(run.job.pid)
    for process in run.decoder_children():
        yield "decoding child", process
    for kind, title in TITLES.items():
        for process in run.cluster.workers(title):
            yield kind, process


def _compare(kind: str, before: Sequence[int], after: Sequence[int]) -> Iterator[MemoryRow]:
    """Process by process; the largest alone where there are not as many as before."""
    if before and after:
        same = len(before) == len(after)
        for pair in zip(before, after, strict=True) if same else [(max(before), max(after))]:
            yield MemoryRow.of(kind, *pair)
