"""Compares the speed of a job with the limit of the machine and with a plain Python loop.

The plain loop does the same work without Ray (`baseline.py`).

1. The CPU time that each stage needs for one clip, measured alone, gives the highest speed that
   this machine can reach.
2. Each round times the plain loop, then the job on the same clips for three epochs with a target
   store that starts empty, then both again on shards with clips as ingest
   writes them, small and without dependent frames, if there are any.
3. In each round, the job's speed is divided by the limit from step 1 and by the plain loop's speed;
   the report holds the medians of these ratios over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import cpu_count
from rich.table import Table

from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.benchmarks.memory import OBJECT_STORE, watch_memory
from liser_dist.benchmarks.stage_costs import StageCosts, measure_stage_costs
from liser_dist.benchmarks.testbed.local_cluster import LocalCluster
from liser_dist.benchmarks.timed_runs import PARTS, RAY_DAEMONS, time_baseline, time_job
from liser_dist.config.base import Record
from liser_dist.config.distill import DataSpec
from liser_dist.config.resources import ResourcesSpec
from liser_dist.console import output
from liser_dist.plots import draw_shares
from liser_dist.synthetic.workload import prepare_workload

EPOCHS, ROUNDS = 3, 3
_LOGICAL_CPUS = 2


class Round(Record):
    """Results of one round: clips per second in mid-epoch, and seconds to the first step."""

    plain: float
    plain_first_s: float
    job: float
    job_first_s: float
    stored: float  # in the second epoch, which reads the targets that the first has stored
    three_epochs_s: float  # from the first step to the last
    plain_normalised: float | None
    job_normalised: float | None
    cpu_s: dict[str, float]  # per clip whose targets are computed, by part of the job


class Ratios(Record):
    """Medians over the rounds of ratios within a round; None where nothing was measured."""

    steady_over_limit: float
    steady_over_plain: float
    steady_over_plain_normalised: float | None
    first_step_over_plain: float
    cold_first_step_over_plain: float
    three_epochs_speedup: float
    store_epoch_speedup: float
    object_store_growth: float | None


# The least or the most that a ratio may be.
BOUNDS: Mapping[str, tuple[str, float]] = {
    "steady_over_limit": (">=", 0.95),
    "steady_over_plain": (">=", 1.0),
    "steady_over_plain_normalised": (">=", 0.9),
    "first_step_over_plain": ("<=", 3.0),
    "three_epochs_speedup": (">=", 2.5),
    "store_epoch_speedup": (">=", 10.0),
    "object_store_growth": ("<=", 0.10),
}


class SpeedReport(Record):
    """The content of `benchmark.json`."""

    clips: int
    cores: int
    costs: StageCosts
    limit: float  # clips per second
    rounds: list[Round]
    ratios: Ratios


@dataclass(frozen=True, slots=True)
class SpeedJobs:
    """The job whose speed is measured, on raw shards and on normalised ones if there are any."""

    raw: BenchmarkJob
    normalised: BenchmarkJob | None

    @classmethod
    def prepare(cls, job: BenchmarkJob) -> SpeedJobs:
        """Return the job on its own shards, or on a synthetic workload if its spec asks for one."""
        synthetic = job.spec.synthetic
        if synthetic is None:
            return cls(job, None)
        folder = prepare_workload(Path(synthetic.place).parent / "speed", synthetic)
        teachers = job.spec.model_dump()["teachers"]
        for name in ("speech", "face"):
            teachers[name]["model"] = str(folder / "teachers" / name)
        raw, normalised = (
            job.variant(
                synthetic=None, teachers=teachers, data=DataSpec(unlabelled=str(folder / name))
            )
            for name in ("raw", "normalised")
        )
        return cls(raw, normalised)

    def run_round(self, folder: Path, cluster: LocalCluster) -> Round:
        """Run the plain loop and the job in turn."""
        clips = self.raw.count_clips()
        plain = time_baseline(self.raw, folder / "plain")
        with_store = self.raw.variant(
            targets={"store": str(folder / "store")}, train={"epochs": EPOCHS}
        )
        run = time_job(with_store, folder / "job", cluster)
        plain_normalised = job_normalised = None
        if self.normalised is not None:
            timeline = time_baseline(self.normalised, folder / "plain-normalised")
            plain_normalised = timeline.clips_per_s(0, clips)
            timeline = time_job(self.normalised, folder / "job-normalised", cluster).timeline
            job_normalised = timeline.clips_per_s(0, clips)
        return Round(
            plain=plain.clips_per_s(0, clips),
            plain_first_s=plain.first_step_s,
            job=run.timeline.clips_per_s(0, clips),
            job_first_s=run.timeline.first_step_s,
            stored=run.timeline.clips_per_s(clips, clips),
            three_epochs_s=run.timeline.all_steps_s,
            plain_normalised=plain_normalised,
            job_normalised=job_normalised,
            cpu_s=run.cpu_per_clip(clips),
        )


def measure_speed(job: BenchmarkJob, folder: Path) -> bool:
    """Run all rounds, write benchmark.json and clip.png, and print the ratios.

    Args:
        job: the job that is measured.
        folder: an empty folder for the runs and the results.

    Returns:
        True if every ratio is within its bound.

    Raises:
        RuntimeError: a job failed.
        CalledProcessError: the plain loop or the measurement of the costs failed.
    """
    jobs = SpeedJobs.prepare(job)
    costs = measure_stage_costs(jobs.raw, folder / "costs")
    limit = limit_clips_per_s(costs, jobs.raw.spec.resources)
    output.print(
        f"CPU time per clip: {1000 * costs.total_s:.0f} ms, so at most {limit:.1f} clips/s on "
        f"{cpu_count()} cores"
    )
    cold = time_job(jobs.raw, folder / "cold", None)
    rounds = []
    with LocalCluster(_LOGICAL_CPUS) as cluster:
        for number in range(ROUNDS):
            rounds.append(jobs.run_round(folder / f"round-{number + 1}", cluster))
            output.print(rounds[-1].model_dump_json())
    growth = None
    if jobs.normalised is not None:
        memory = watch_memory(jobs.normalised, folder / "memory")
        (growth,) = (row.growth for row in memory if row.kind == OBJECT_STORE)
    clips = jobs.raw.count_clips()
    report = SpeedReport(
        clips=clips,
        cores=cpu_count(),
        costs=costs,
        limit=limit,
        rounds=rounds,
        ratios=median_ratios(rounds, clips, limit, cold.timeline.first_step_s, growth),
    )
    (folder / "benchmark.json").write_text(report.model_dump_json(indent=1))
    draw_cpu_times(report, folder / "clip.png")
    output.print(ratio_table(report.ratios))
    output.print(f"chart of the CPU time per clip by stage: {folder / 'clip.png'}")
    output.print(f"results: {folder / 'benchmark.json'}")
    ratios = report.ratios.model_dump()
    return all(is_within_bound(name, ratios[name]) for name in BOUNDS)


def limit_clips_per_s(costs: StageCosts, resources: ResourcesSpec) -> float:
    """Return the most clips per second that the CPUs, and GPUs of the teachers, allow."""
    if not resources.teacher_gpus:
        return cpu_count() / costs.total_s
    gpus = resources.teachers[1] * resources.teacher_gpus
    return min(
        cpu_count() / (costs.decode_s + costs.student_s), gpus / (costs.speech_s + costs.face_s)
    )


def median_ratios(
    rounds: Sequence[Round], clips: int, limit: float, cold_first_s: float, growth: float | None
) -> Ratios:
    """Return the medians over the rounds of the ratios within a round.

    Args:
        rounds: their results.
        clips: clips of an epoch.
        limit: clips per second that are possible.
        cold_first_s: seconds to the first step of a job that starts Ray itself.
        growth: of the object store, as a share.
    """

    def median(ratio: Callable[[Round], float]) -> float:
        return statistics.median(ratio(result) for result in rounds)

    normalised = [
        result.job_normalised / result.plain_normalised
        for result in rounds
        if result.job_normalised and result.plain_normalised
    ]
    return Ratios(
        steady_over_limit=median(lambda result: result.job / limit),
        steady_over_plain=median(lambda result: result.job / result.plain),
        steady_over_plain_normalised=statistics.median(normalised) if normalised else None,
        first_step_over_plain=median(lambda result: result.job_first_s / result.plain_first_s),
        cold_first_step_over_plain=median(lambda result: cold_first_s / result.plain_first_s),
        three_epochs_speedup=median(
            lambda result: EPOCHS * clips / result.plain / result.three_epochs_s
        ),
        store_epoch_speedup=median(lambda result: result.stored / result.job),
        object_store_growth=growth,
    )


def is_within_bound(name: str, value: float | None) -> bool:
    """Return True if a ratio is within its bound in `BOUNDS`, or was not measured."""
    sign, bound = BOUNDS[name]
    return value is None or (value >= bound if sign == ">=" else value <= bound)


def ratio_table(ratios: Ratios) -> Table:
    """Return a table of the ratios and their bounds."""
    table = Table(
        "ratio", "measured", "bound", "within bound",
        title="speed of the job, relative to its limit and to a plain loop",
    )  # fmt: skip
    for name, value in ratios.model_dump().items():
        sign, bound = BOUNDS.get(name, ("", ""))
        within = "" if name not in BOUNDS else "yes" if is_within_bound(name, value) else "no"
        table.add_row(name, "-" if value is None else f"{value:.2f}", f"{sign} {bound}", within)
    return table


def draw_cpu_times(report: SpeedReport, file: Path) -> None:
    """Draw the CPU time of a clip by stage, alone in one process and in the job."""
    costs = report.costs
    alone = {
        "decoding": costs.decode_s,
        "teaching": costs.speech_s + costs.face_s,
        "training": costs.student_s,
    }
    in_job = {
        part: statistics.median(result.cpu_s.get(part, 0.0) for result in report.rounds)
        for part in (*PARTS, RAY_DAEMONS)
    }
    bars = {"stages alone": alone, "in the job": in_job}
    in_ms = {name: {part: 1000 * s for part, s in bar.items()} for name, bar in bars.items()}
    draw_shares(in_ms, "CPU time per clip", "CPU milliseconds per clip", file)
