"""Runs a job, or the plain loop that it is compared with, and records when each step ended.

Speeds are taken from the middle of an epoch, because the pipeline fills at its start and drains at
its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from liser_dist.benchmarks.job_runs import BenchmarkJob, run_measurement
from liser_dist.benchmarks.testbed.local_cluster import LocalCluster
from liser_dist.runs.curves import read_scalars

_STEADY = (0.25, 0.6)  # the middle part of an epoch, in shares of its clips
CPU_SAMPLE_EVERY_S = 5.0
# Titles of a job's processes, by what they do for a clip. The names are keys of benchmark.json.
PARTS: Mapping[str, tuple[str, ...]] = {
    "decoding": (
        "liser_dist.data.child_process",
        "liser_dist.data.clip_decoder",
        "MapBatches(Decode)",
    ),
    "teaching": ("MapBatches(Teach)",),
    "training": ("ray::RayTrainWorker",),
    "reading": ("MapBatches(_read)",),
    "writing the target store": ("ray::StretchWriter",),
    "data stream and control": (
        "ray::SplitCoordinator", "ray::DatasetManager", "ray::TrainController",
        "ray::RunCoordinator", "jobs/distill.py", "ray::PreemptionWatcher",
    ),
}  # fmt: skip
RAY_DAEMONS = "Ray's daemons"


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a process started, and after each step the time and the clips so far."""

    started: float
    steps: Sequence[tuple[float, int]]

    @property
    def first_step_s(self) -> float:
        """Seconds from the start to the end of the first step."""
        return self.steps[0][0] - self.started

    @property
    def all_steps_s(self) -> float:
        """Seconds from the end of the first step to the end of the last."""
        return self.steps[-1][0] - self.steps[0][0]

    def steady_part(self, first_clip: int, clips: int) -> tuple[float, float, int]:
        """Return start, end and number of clips of the middle of an epoch.

        Args:
            first_clip: clips before the epoch.
            clips: clips of the epoch.
        """
        low, high = (first_clip + share * clips for share in _STEADY)
        inside = [step for step in self.steps if low <= step[1] <= high]
        (start, before), (end, after) = inside[0], inside[-1]
        return start, end, after - before

    def clips_per_s(self, first_clip: int, clips: int) -> float:
        """Return the clips per second in the middle of an epoch; see `steady_part`."""
        start, end, done = self.steady_part(first_clip, clips)
        return done / (end - start)


@dataclass(frozen=True, slots=True)
class TimedRun:
    """A job that has ended: its steps, and the CPU time of its parts."""

    timeline: Timeline
    cpu: Sequence[tuple[float, Mapping[str, float]]]  # time, CPU seconds so far by part

    def cpu_per_clip(self, clips: int) -> dict[str, float]:
        """Return CPU seconds per clip and part, in the middle of a first epoch of `clips`."""
        start, end, _ = self.timeline.steady_part(0, clips)
        inside = [sample for sample in self.cpu if start <= sample[0] <= end]
        (first_at, first), (last_at, last) = inside[0], inside[-1]
        clips_per_s = self.timeline.clips_per_s(0, clips)
        return {
            part: (seconds - first.get(part, 0.0)) / (last_at - first_at) / clips_per_s
            for part, seconds in last.items()
        }


def time_baseline(job: BenchmarkJob, folder: Path) -> Timeline:
    """Run the plain loop for one epoch in a process of its own.

    Raises:
        CalledProcessError: the process failed; its log is in the folder.
    """
    started = time.time()
    clips_so_far, steps = 0, []
    for ended, clips in json.loads(run_measurement("baseline", job, folder)):
        clips_so_far += clips
        steps.append((ended, clips_so_far))
    return Timeline(started, steps)


def time_job(job: BenchmarkJob, folder: Path, cluster: LocalCluster | None) -> TimedRun:
    """Run a job on a running cluster, or on a Ray that it starts for itself where none is given.

    CPU times are measured on a running cluster only.

    Raises:
        RuntimeError: the job failed; the message holds the end of its log.
    """
    folder.mkdir(parents=True)
    environment = cluster.environment if cluster else {**os.environ, "RAY_ADDRESS": "local"}
    log = folder / "log"
    started = time.time()
    driver = job.variant(output=str(folder / "runs")).start(folder, log, environment)
    cpu = list(_sample_cpu(driver, cluster)) if cluster else []
    if driver.wait():
        raise RuntimeError(f"the job failed: {log.read_text()[-2000:]}")
    (run,) = (folder / "runs" / job.spec.name).iterdir()
    return TimedRun(Timeline(started, _read_steps(run, job.spec.train.batch_size)), cpu)


def _read_steps(run: Path, batch_size: int) -> list[tuple[float, int]]:
    """Return the wall time and the clips so far of each step that the run has logged."""
    scalars = read_scalars(str(run))
    name = next(name for name in scalars if name.startswith("train/distilled"))
    return [(float(time_s), int(step) * batch_size) for time_s, step, _ in scalars[name]]


def _sample_cpu(
    driver: subprocess.Popen[bytes], cluster: LocalCluster
) -> Iterator[tuple[float, dict[str, float]]]:
    """Yield the CPU seconds of each part so far, every few seconds until the job ends."""
    spent: dict[int, tuple[str, float]] = {}
    while driver.poll() is None:
        for process in cluster.processes():
            try:
                times = process.cpu_times()
                part = part_of(" ".join(process.cmdline()))
            except psutil.Error:
                continue
            if part == RAY_DAEMONS and process.pid in spent:
                part = spent[process.pid][0]  # between two tasks a reader has no title
            spent[process.pid] = (part, times.user + times.system)
        total: dict[str, float] = defaultdict(float)
        for part, seconds in spent.values():
            total[part] += seconds
        yield time.time(), dict(total)
        time.sleep(CPU_SAMPLE_EVERY_S)


def part_of(title: str) -> str:
    """Return the part of a job to which a process belongs, by its title."""
    return next(
        (part for part, titles in PARTS.items() if any(known in title for known in titles)),
        RAY_DAEMONS,
    )
