"""Prints plans, progress and results of jobs to the terminal, or as plain lines to a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import yaml
from rich.console import Console
from rich.table import Table

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity, format_amount, total_of
from liser_dist.cluster.forecast import (
    STREAM_BYTES_PER_S,
    Forecast,
    forecast_cells,
    forecast_job,
    read_costs,
    readers_needed,
)
from liser_dist.config.base import EMOTIONS, Bounds, Spec
from liser_dist.config.distill import DistillSpec
from liser_dist.config.resources import ResourcesSpec
from liser_dist.config.study import StudySpec
from liser_dist.config.synthetic import SyntheticSpec
from liser_dist.data.shard_list import Shard
from liser_dist.runs.caveats import warn_few_steps
from liser_dist.runs.progress import Progress
from liser_dist.runs.results import DistillResult, StudentScores, TeacherScores

PLAIN_WIDTH = 140
LIVE_EVERY_S = 1.0
PLAIN_EVERY_S = 15.0
STALLED_S = 60.0  # without a step, after which missing cluster resources are printed

# A log has no width that a table must fit.
output = Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH
)


@contextmanager
def show_clip_count(
    total: int, plain_every_s: float = PLAIN_EVERY_S
) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` clips are done.

    Args:
        total: Number of clips.
        plain_every_s: Seconds between two lines, if the output is not a terminal.

    Yields:
        A function that is called with the number of clips that have been completed.
    """
    done, start = 0, time.monotonic()
    printed = start

    def line() -> str:
        return f"{done}/{total} clips · {done / (time.monotonic() - start):.0f} clips/s"

    with output.status("starting the teachers") as status:

        def count(clips: int) -> None:
            nonlocal done, printed
            done += clips
            status.update(line())
            if not output.is_terminal and time.monotonic() - printed > plain_every_s:
                output.print(line())
                printed = time.monotonic()

        yield count
    output.print(line())


@contextmanager
def show_progress(
    read: Callable[[], Progress], missing: Callable[[], str], stalled_s: float = STALLED_S
) -> Iterator[None]:
    """Show the progress of training until the block ends.

    Args:
        read: Returns the current progress.
        missing: Returns the resources that the cluster lacks, or "". Called when there was no step
            for `stalled_s`.
        stalled_s: Seconds without a step after which missing resources are printed.
    """
    ended = threading.Event()
    show = _show_live if output.is_terminal else _show_plain
    threads = [
        threading.Thread(target=show, args=(read, ended), daemon=True),
        threading.Thread(target=_show_missing, args=(read, missing, stalled_s, ended), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=10)


def _show_live(read: Callable[[], Progress], ended: threading.Event) -> None:
    with output.status("starting the workers") as status:
        while not ended.wait(LIVE_EVERY_S):
            progress = read()
            if progress.steps:
                status.update(progress_line(progress))


def _show_plain(read: Callable[[], Progress], ended: threading.Event) -> None:
    shown = 0
    while not ended.wait(PLAIN_EVERY_S if shown else LIVE_EVERY_S):
        progress = read()
        if progress.steps > shown:
            output.print(progress_line(progress))
            shown = progress.steps


def _show_missing(
    read: Callable[[], Progress],
    missing: Callable[[], str],
    stalled_s: float,
    ended: threading.Event,
) -> None:
    before = 0
    while not ended.wait(stalled_s):
        steps = read().steps
        if steps == before and (resources := missing()):
            output.print(f"waiting for a larger cluster, because {resources}")
        before = steps


def progress_line(progress: Progress) -> str:
    """Return one line about the progress of training.

    For example `480/4800 clips · 38 clips/s · 0:01:53 left · loss 1.21 · waiting for data 62% of
    the time · 3 rejected`.
    """
    left = "-" if progress.left_s is None else str(timedelta(seconds=round(progress.left_s)))
    parts = [
        f"{progress.passes}/{'~' * progress.total_is_estimate}{progress.total_passes} clips",
        f"{progress.clips_per_s:.0f} clips/s",
        f"{left} left",
        f"loss {progress.loss:.2f}",
        f"waiting for data {progress.data_wait_share:.0%} of the time",
        f"{progress.rejected} rejected",
    ]
    if progress.skipped_steps:
        parts.append(f"{_count(progress.skipped_steps, 'step')} skipped (gradient not finite)")
    parts += [f"{kind} validation UAR {uar:.0%}" for kind, uar in progress.scores.items()]
    return " · ".join(parts)


def print_plan(
    spec: Spec,
    resources: ResourcesSpec,
    worker_bounds: Bounds,
    capacity: Capacity,
    shards: Mapping[str, Sequence[Shard]],
) -> None:
    """Print the resolved spec, the shards, and what the job needs of the cluster.

    Args:
        spec: Spec of the job.
        resources: What its stages take.
        worker_bounds: Fewest and most train workers; (0, 0) if it has none.
        capacity: What the cluster has.
        shards: Shards by set.

    Raises:
        CapacityError: The job does not fit the cluster.
    """
    output.print(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
    for name, of_set in shards.items():
        clips = sum(shard.clips for shard in of_set)
        output.print(f"{name}: {_count(len(of_set), 'shard')}, {_count(clips, 'clip')}")
    if isinstance(spec, DistillSpec) and "unlabelled" in shards:
        print_steps(spec, worker_bounds, sum(shard.clips for shard in shards["unlabelled"]))
    costs = None if resources.costs is None else read_costs(resources.costs)
    forecast = forecast_job(resources, worker_bounds, capacity, costs)
    print_forecast(capacity, forecast)
    print_readers(resources, forecast, [shard for of_set in shards.values() for shard in of_set])
    if isinstance(spec, StudySpec):
        study, pool = spec.study, resources.pools.students
        cells = forecast_cells(pool, study.cells, study.cell_cpus, capacity, costs)
        print_forecast(capacity, cells)
    total = total_of([stage.need for stage in forecast.stages])
    needed = ", ".join(format_amount(amount, kind) for kind, amount in total.items())
    available = ", ".join(format_amount(n, kind) for kind, n in capacity.amounts.items())
    output.print(
        f"the job needs at least {needed}; {capacity.where} has {available}, so the job fits"
    )


def print_steps(spec: DistillSpec, worker_bounds: Bounds, clips: int) -> None:
    """Print how many steps the training takes, and warn if they are few.

    Args:
        spec: Spec of the job.
        worker_bounds: Fewest and most train workers; (0, 0) for a study, which trains in its cells.
        clips: Number of unlabelled clips.
    """
    is_study = isinstance(spec, StudySpec)
    if not (is_study or worker_bounds[1]):
        return
    train = spec.train
    # Each epoch of a study, which reads the target store, ends with a smaller step.
    parts = train.epochs if is_study else 1
    steps = parts * -(-clips * train.epochs // parts // train.batch_size)
    output.print(
        f"{'each student' if is_study else 'training'}: {_count(clips, 'clip')} x "
        f"{_count(train.epochs, 'epoch')} / {train.batch_size} clips per step "
        f"(`train.batch_size`) = {_count(steps, 'step')}"
    )
    validates = spec.data.validation is not None and not is_study
    every = train.validate_every if validates else None
    for warning in warn_few_steps(steps, train.batch_size, every):
        output.print(f"WARNING: {warning}")


def print_readers(resources: ResourcesSpec, forecast: Forecast, shards: Sequence[Shard]) -> None:
    """Warn if too few tasks read the shards for the speed of a forecast; shards on disk are fast.

    Args:
        resources: What the stages of the job take.
        forecast: Forecast of the job.
        shards: The shards of all sets.
    """
    remote = [shard for shard in shards if storage.is_remote(shard.place)]
    clips = sum(shard.clips for shard in remote)
    if not clips:
        return
    bytes_per_clip = sum(shard.size_bytes for shard in remote) / clips
    needed = readers_needed(forecast, bytes_per_clip)
    if needed is not None and needed > resources.readers:
        output.print(
            f"WARNING: reading {bytes_per_clip / 1e6:.2f} MB per clip from S3 at the forecast "
            f"speed takes about {needed} readers at {STREAM_BYTES_PER_S / 1e6:.0f} MB/s each, but "
            f"`resources.readers` is {resources.readers}: raise it"
        )


def print_forecast(capacity: Capacity, forecast: Forecast) -> None:
    """Print how many of each stage will run, and with costs the speed and the price."""
    table = Table(title=f"actors and workers of each stage on {capacity.where}")
    for name in ("stage", "minimum", "will run", "each takes", "clips/s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in forecast.stages:
        need = stage.need
        pace = "" if stage.clips_per_s is None else f"{stage.clips_per_s:,.0f}"
        if stage is forecast.slowest:
            pace += " (slowest)"
        each = format_amount(need.cpus, "CPU")
        each += f", {format_amount(need.gpus, 'GPU')}" if need.gpus else ""
        table.add_row(need.stage, str(need.count), str(stage.count), each, pace)
    output.print(table)
    if forecast.dollars_per_hour is not None:
        nodes = ", ".join(f"{count} x {kind}" for kind, count in forecast.nodes.items() if kind)
        million = forecast.dollars_per_million
        price = f"{forecast.dollars_per_hour:.2f} USD per hour"
        if million is not None:
            price += f", {million:,.0f} USD for one pass over a million clips"
        output.print(f"{nodes}: {price}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def print_synthetic(spec: SyntheticSpec) -> None:
    """Print what the synthetic corpus is, and what its teachers were trained on."""
    labels = spec.labelled_per_emotion * len(EMOTIONS)
    output.print(
        "Synthetic corpus: it shows that the method works, not how well it works on real speech. "
        f"It has {spec.unlabelled_clips} unlabelled and {labels} labelled clips, with different "
        "speakers in each set. The teachers' backbones were trained on further speakers and stand "
        f"in for large public models; their heads were fitted on the same {labels} labels that the "
        "labels-only student gets."
    )


def print_controls(result: DistillResult, pseudo_labelled: StudentScores) -> None:
    """Print what each way of training gains over labels only, in points of UAR.

    Args:
        result: Result of the run with the controls in `compare`.
        pseudo_labelled: Scores of the student trained on pseudo-labels.
    """
    if result.label_only is None or result.label_only.uar is None:
        return
    base = result.label_only.uar
    table = Table(title="gain over the labels-only student, in points of UAR")
    table.add_column("")
    table.add_column("points", justify="right")
    rows = {
        "both teachers": result.student,
        "speech teacher only": result.comparisons["speech_only"],
        "face teacher only": result.comparisons["face_only"],
        "face teacher only, faces swapped between clips": result.comparisons["swapped_faces"],
        "both teachers, targets shuffled between clips": result.comparisons["shuffled_targets"],
        "the labels-only student's pseudo-labels": pseudo_labelled,
    }
    for name, scores in rows.items():
        if scores.uar is not None:
            table.add_row(name, f"{100 * (scores.uar - base):+.1f}")
    output.print(table)


def print_result(result: DistillResult) -> None:
    """Print the scores of students and teachers, and how the run went."""
    table = Table(title=f"{result.name}, seed {result.seed}: scores on held-out speakers")
    for column in ("", "parameters", "UAR", "WAR", "macro F1"):
        table.add_column(column, justify="left" if not column else "right")
    rows: dict[str, StudentScores | TeacherScores | None] = {
        "student, distilled": result.student,
        "student, labels only": result.label_only,
        **{
            f"student, {kind.replace('_', ' ')}": scores
            for kind, scores in result.comparisons.items()
        },
        "speech teacher": result.speech_teacher,
        "face teacher": result.face_teacher,
    }
    for name, scores in rows.items():
        if scores is None:
            continue
        params = f"{scores.params:,}" if isinstance(scores, StudentScores) else ""
        shares = [scores.uar, scores.war, scores.macro_f1]
        table.add_row(name, params, *("-" if s is None else f"{100 * s:.1f} %" for s in shares))
    clips, seconds = result.clips, result.seconds
    output.print(table)
    for warning in result.warnings:
        output.print(f"WARNING: {warning}")
    if clips.compared:
        output.print(
            f"the teachers disagree on {clips.differing / clips.compared:.0%} of the clips "
            "for which both predicted an emotion that both of them know"
        )
    if clips.unsure:
        output.print(
            f"{clips.unsure / clips.passes:.0%} of the clips were left out of the KL terms of the "
            "loss, because no teacher was certain enough (`loss.min_confidence`)"
        )
    if clips.labelled_by_set:
        sets = ", ".join(f"{name} {count:,}" for name, count in clips.labelled_by_set.items())
        output.print(f"labelled clips used: {sets}")
    output.print(
        f"{_count(clips.total, 'clip')}: {clips.trained:,} trained, {clips.rejected:,} rejected · "
        f"{_count(result.steps, 'step')} · {result.clips_per_s:.0f} clips/s · waiting for data "
        f"{result.data_wait_share:.0%} of the time · first step after "
        f"{seconds.to_first_step:.0f} s, total {seconds.total:.0f} s"
    )
