"""How fast a job is, beside its limit and beside the plain loop: the same clips, in turn.

1. what a clip costs each stage alone; the limit that follows, on the cores that there are
2. in each round: the plain loop; the job with an empty target store, for three epochs; both again
   on normalised shards
3. medians over the rounds, and their ratios
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from joblib import cpu_count
from rich.table import Table

from liser_dist.limits import Costs
from liser_dist.local_cluster import LocalCluster
from liser_dist.memory import OBJECT_STORE, watch_memory
from liser_dist.pictures import draw_shares
from liser_dist.results import Record
from liser_dist.screen import console
from liser_dist.shards import find_shards
from liser_dist.spec import DistillSpec
from liser_dist.workload import prepare_workload

JOB = Path(__file__).parents[1] / "jobs" / "distill.py"
EPOCHS, ROUNDS = 3, 3
LOGICAL_CPUS = 2
# Of an epoch's steps: what comes before and after is filling and emptying the pipeline.
STEADY = (0.25, 0.6)
SAMPLE_EVERY_S = 5.0
# Ray's processes of a job, by what they do for a clip.
PARTS: Mapping[str, tuple[str, ...]] = {
    "decoding": ("liser_dist.child", "liser_dist.guard", "MapBatches(Decode)"),
    "teaching": ("MapBatches(Teach)",),
    "training": ("ray::RayTrainWorker",),
    "reading": ("MapBatches(_read)",),
    "keeping": ("ray::StretchWriter",),
    "stream and control": (
        "ray::SplitCoordinator", "ray::DatasetManager", "ray::TrainController", "ray::Desk",
        "jobs/distill.py", "ray::PreemptionWatcher",
    ),
}  # fmt: skip
RAYS_OWN = "Ray's daemons"


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a process began, and after each step the time and the clips so far."""

    begun: float
    steps: Sequence[tuple[float, int]]

    @property
    def first_step_s(self) -> float:
        return self.steps[0][0] - self.begun

    def window(self, first_clip: int, clips: int) -> tuple[float, float, int]:
        """Start, end and clips of the steady part of an epoch."""
        low, high = (first_clip + share * clips for share in STEADY)
        inside = [step for step in self.steps if low <= step[1] <= high]
        (start, before), (end, after) = inside[0], inside[-1]
        return start, end, after - before

    def steady(self, first_clip: int, clips: int) -> float:
        """Clips a second in that part."""
        start, end, done = self.window(first_clip, clips)
        return done / (end - start)


# ---------------------------------------------------------------- what is run


def run_plain(spec: DistillSpec, folder: Path) -> Timeline:
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    begun = time.time()
    with (folder / "log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "liser_dist.plain_loop", folder / "spec.json",
             folder / "timeline.json"],
            stdout=log, stderr=log, check=True,
        )  # fmt: skip
    done, steps = 0, []
    for at, clips in json.loads((folder / "timeline.json").read_text()):
        done += clips
        steps.append((at, done))
    return Timeline(begun, steps)


@dataclass(frozen=True, slots=True)
class JobRun:
    timeline: Timeline
    cpu: Sequence[tuple[float, Mapping[str, float]]]  # time, CPU seconds so far by part


def run_job(spec: DistillSpec, folder: Path, cluster: LocalCluster | None) -> JobRun:
    """On a Ray that runs already; on one of its own, without."""
    folder.mkdir(parents=True)
    spec = spec.model_copy(update={"output": str(folder / "runs")})
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    environment = cluster.environment if cluster else {**os.environ, "RAY_ADDRESS": "local"}
    begun = time.time()
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(
            [sys.executable, str(JOB), str(folder / "spec.yaml")],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        cpu = list(_sample_cpu(job, cluster)) if cluster else []
        if job.wait():
            raise RuntimeError(f"the job failed: {(folder / 'log').read_text()[-2000:]}")
    (run,) = (folder / "runs" / spec.name).iterdir()
    return JobRun(Timeline(begun, read_steps(run, spec.train.batch_size)), cpu)


def read_steps(run: Path, batch: int) -> list[tuple[float, int]]:
    """A run's steps from its TensorBoard files."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0}
    )
    events.Reload()
    name = next(tag for tag in events.Tags()["scalars"] if tag.startswith("train/distilled"))
    return [(event.wall_time, event.step * batch) for event in events.Scalars(name)]


def _sample_cpu(
    job: subprocess.Popen[bytes], cluster: LocalCluster
) -> Iterator[tuple[float, dict[str, float]]]:
    """CPU seconds of each part so far, every few seconds until the job ends."""
    spent: dict[int, tuple[str, float]] = {}
    while job.poll() is None:
        for process in cluster.processes():
            try:
                times = process.cpu_times()
                part = _part_of(" ".join(process.cmdline()))
            except psutil.Error:
                continue
            if part == RAYS_OWN and process.pid in spent:
                part = spent[process.pid][0]  # between two tasks a reader bears no name
            spent[process.pid] = (part, times.user + times.system)
        total: dict[str, float] = defaultdict(float)
        for part, seconds in spent.values():
            total[part] += seconds
        yield time.time(), dict(total)
        time.sleep(SAMPLE_EVERY_S)


def _part_of(title: str) -> str:
    return next(
        (part for part, titles in PARTS.items() if any(known in title for known in titles)),
        RAYS_OWN,
    )


def cpu_of_clip(run: JobRun, clips: int) -> dict[str, float]:
    """CPU seconds of each part for one clip, in the steady part of the first epoch."""
    start, end, _ = run.timeline.window(0, clips)
    inside = [sample for sample in run.cpu if start <= sample[0] <= end]
    (began, before), (ended, after) = inside[0], inside[-1]
    clips_s = run.timeline.steady(0, clips)
    return {
        part: (seconds - before.get(part, 0.0)) / (ended - began) / clips_s
        for part, seconds in after.items()
    }


# ---------------------------------------------------------------- rounds and ratios


class Round(Record):
    """What one round gave: clips a second in steady parts, and seconds to the first step."""

    plain: float
    plain_first_s: float
    job: float
    job_first_s: float
    stored: float  # in the epochs that read what the first had taught
    three_epochs_s: float  # from the first step to the last
    plain_normalised: float | None
    job_normalised: float | None
    cpu_s: dict[str, float]  # of a clip that is taught, by part of the job


def measure_costs(spec: DistillSpec, folder: Path) -> Costs:
    """In a process of its own."""
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    subprocess.run(
        [sys.executable, "-m", "liser_dist.limits", folder / "spec.json", folder / "costs.json"],
        check=True,
    )
    return Costs.model_validate_json((folder / "costs.json").read_text())


def limit_of(costs: Costs, spec: DistillSpec) -> float:
    """Clips a second: cores over what a clip costs; the slower, where teachers have GPUs."""
    resources = spec.resources
    if not resources.teacher_gpus:
        return cpu_count() / costs.total_s
    gpus = resources.teachers[1] * resources.teacher_gpus
    return min(
        cpu_count() / (costs.decode_s + costs.student_s), gpus / (costs.speech_s + costs.face_s)
    )


def run_round(
    raw: DistillSpec, normalised: DistillSpec | None, folder: Path, cluster: LocalCluster
) -> Round:
    clips = count_clips(raw)
    plain = run_plain(raw, folder / "plain")
    job = run_job(with_store(raw, folder / "store"), folder / "job", cluster)
    line = job.timeline
    return Round(
        plain=plain.steady(0, clips),
        plain_first_s=plain.first_step_s,
        job=line.steady(0, clips),
        job_first_s=line.first_step_s,
        stored=line.steady(clips, clips),
        three_epochs_s=line.steps[-1][0] - line.steps[0][0],
        plain_normalised=normalised
        and run_plain(normalised, folder / "plain-normalised").steady(0, clips),
        job_normalised=normalised
        and run_job(normalised, folder / "job-normalised", cluster).timeline.steady(0, clips),
        cpu_s=cpu_of_clip(job, clips),
    )


def count_clips(spec: DistillSpec) -> int:
    return sum(shard.clips for shard in find_shards(spec.data.unlabelled, "data.unlabelled"))


def with_store(spec: DistillSpec, store: Path) -> DistillSpec:
    content = spec.model_dump()
    content["targets"]["store"] = str(store)
    content["train"]["epochs"] = EPOCHS
    return DistillSpec.model_validate(content)


class Ratios(Record):
    """Medians over rounds of ratios within a round; None where there was nothing to measure."""

    steady_over_limit: float
    steady_over_plain: float
    steady_over_plain_normalised: float | None
    first_step_over_plain: float
    cold_first_step_over_plain: float
    three_epochs_speedup: float
    store_epoch_speedup: float
    object_store_growth: float | None


# What to reach: a ratio at least, or at most.
WANTED: Mapping[str, tuple[str, float]] = {
    "steady_over_limit": (">=", 0.95),
    "steady_over_plain": (">=", 1.0),
    "steady_over_plain_normalised": (">=", 0.9),
    "first_step_over_plain": ("<=", 3.0),
    "three_epochs_speedup": (">=", 2.5),
    "store_epoch_speedup": (">=", 10.0),
    "object_store_growth": ("<=", 0.10),
}


def ratios_of(
    rounds: Sequence[Round], clips: int, limit: float, cold_first_s: float, growth: float | None
) -> Ratios:
    def median(ratio: Callable[[Round], float]) -> float:
        return statistics.median(ratio(one) for one in rounds)

    normalised = [
        one.job_normalised / one.plain_normalised
        for one in rounds
        if one.job_normalised and one.plain_normalised
    ]
    return Ratios(
        steady_over_limit=median(lambda one: one.job / limit),
        steady_over_plain=median(lambda one: one.job / one.plain),
        steady_over_plain_normalised=statistics.median(normalised) if normalised else None,
        first_step_over_plain=median(lambda one: one.job_first_s / one.plain_first_s),
        cold_first_step_over_plain=median(lambda one: cold_first_s / one.plain_first_s),
        three_epochs_speedup=median(lambda one: EPOCHS * clips / one.plain / one.three_epochs_s),
        store_epoch_speedup=median(lambda one: one.stored / one.job),
        object_store_growth=growth,
    )


class SpeedReport(Record):
    """`benchmark.json`."""

    clips: int
    cores: int
    costs: Costs
    limit: float  # clips a second
    rounds: list[Round]
    ratios: Ratios


def measure(spec: DistillSpec, folder: Path) -> bool:
    """Run all of it, print the table; returns whether every ratio is what it should be."""
    raw, normalised = workload_of(spec)
    costs = measure_costs(raw, folder / "costs")
    limit = limit_of(costs, raw)
    console.print(f"a clip costs {1000 * costs.total_s:.0f} ms: at most {limit:.1f} clips/s")
    cold = run_job(raw, folder / "cold", None)
    rounds = []
    with LocalCluster(LOGICAL_CPUS) as cluster:
        for number in range(ROUNDS):
            rounds.append(run_round(raw, normalised, folder / f"round-{number + 1}", cluster))
            console.print(rounds[-1].model_dump_json())
    growth = object_store_growth(normalised, folder / "memory") if normalised else None
    clips = count_clips(raw)
    report = SpeedReport(
        clips=clips,
        cores=cpu_count(),
        costs=costs,
        limit=limit,
        rounds=rounds,
        ratios=ratios_of(rounds, clips, limit, cold.timeline.first_step_s, growth),
    )
    (folder / "benchmark.json").write_text(report.model_dump_json(indent=1))
    draw(report, folder / "clip.png")
    console.print(table_of(report.ratios))
    console.print(f"{folder / 'benchmark.json'} {folder / 'clip.png'}")
    return all(holds(name, getattr(report.ratios, name)) for name in WANTED)


def workload_of(spec: DistillSpec) -> tuple[DistillSpec, DistillSpec | None]:
    """The spec on raw and on normalised shards; on the user's own alone, where it names some."""
    if spec.synthetic is None:
        return spec, None
    place = prepare_workload(Path(spec.synthetic.place).parent / "speed", spec.synthetic)
    content = spec.model_dump() | {"synthetic": None}
    for name in ("speech", "face"):
        content["teachers"][name]["model"] = str(place / "teachers" / name)
    made = [
        DistillSpec.model_validate({**content, "data": {"unlabelled": str(place / name)}})
        for name in ("raw", "normalised")
    ]
    return made[0], made[1]


def object_store_growth(spec: DistillSpec, folder: Path) -> float:
    """Of the most that lay in it by 5,000 clips over the most by 1,000."""
    (row,) = (row for row in watch_memory(spec, folder) if row.kind == OBJECT_STORE)
    return row.growth


def holds(name: str, value: float | None) -> bool:
    sign, bound = WANTED[name]
    return value is None or (value >= bound if sign == ">=" else value <= bound)


def table_of(ratios: Ratios) -> Table:
    table = Table(
        "ratio", "measured", "to reach", "", title="a job beside the limit, and beside a plain loop"
    )
    for name, value in ratios.model_dump().items():
        sign, bound = WANTED.get(name, ("", ""))
        there = "" if name not in WANTED else "yes" if holds(name, value) else "no"
        table.add_row(name, "-" if value is None else f"{value:.2f}", f"{sign} {bound}", there)
    return table


def draw(report: SpeedReport, file: Path) -> None:
    """Where a clip's time goes: alone in one process, and in the job."""
    costs = report.costs
    alone = {
        "decoding": costs.decode_s,
        "teaching": costs.speech_s + costs.face_s,
        "training": costs.student_s,
    }
    in_job = {
        part: statistics.median(one.cpu_s.get(part, 0.0) for one in report.rounds)
        for part in (*PARTS, RAYS_OWN)
    }
    bars = {"alone": alone, "in the job": in_job}
    in_ms = {name: {part: 1000 * s for part, s in bar.items()} for name, bar in bars.items()}
    draw_shares(in_ms, "Where a clip's time goes", "CPU milliseconds a clip", file)
