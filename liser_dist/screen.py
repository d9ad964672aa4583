"""What a person sees of a run: one live line, or plain lines without a terminal; the scores."""

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

from liser_dist.cluster import Capacity, total_of
from liser_dist.desk import Progress
from liser_dist.fields import EMOTIONS
from liser_dist.outlook import Outlook, look_out, look_out_cells, read_costs
from liser_dist.results import DistillResult, StudentScores, TeacherScores
from liser_dist.shards import Shard
from liser_dist.spec import DistillSpec
from liser_dist.study_spec import StudySpec
from liser_dist.synthetic import SyntheticSpec

PLAIN_WIDTH = 140
LIVE_EVERY_S = 1.0
PLAIN_EVERY_S = 15.0
STILL_S = 60.0  # no step for so long: does the cluster still have room?

# A log has no width that a table would have to fit.
console = Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH
)


@contextmanager
def counted(total: int, plain_every_s: float = PLAIN_EVERY_S) -> Iterator[Callable[[int], None]]:
    """Show how many of so many clips are done, of which the block is told; never backwards."""
    done, begun = 0, time.monotonic()
    shown = begun

    def line() -> str:
        return f"{done}/{total} clips · {done / (time.monotonic() - begun):.0f} clips/s"

    with console.status("starting the teachers") as status:

        def count(clips: int) -> None:
            nonlocal done, shown
            done += clips
            status.update(line())
            if not console.is_terminal and time.monotonic() - shown > plain_every_s:
                console.print(line())
                shown = time.monotonic()

        yield count
    console.print(line())


@contextmanager
def watched(
    read: Callable[[], Progress], lack: Callable[[], str], still_s: float = STILL_S
) -> Iterator[None]:
    """Show the progress that `read` returns until the block ends.

    When there was none for `still_s`, `lack` is asked what the cluster does not have, if anything.
    """
    ended = threading.Event()
    show = _show_live if console.is_terminal else _show_plain
    shows = [
        threading.Thread(target=show, args=(read, ended), daemon=True),
        threading.Thread(target=_show_lack, args=(read, lack, still_s, ended), daemon=True),
    ]
    for thread in shows:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in shows:
            thread.join(timeout=10)


def _show_live(read: Callable[[], Progress], ended: threading.Event) -> None:
    with console.status("starting the workers") as status:
        while not ended.wait(LIVE_EVERY_S):
            progress = read()
            if progress.steps:
                status.update(line_of(progress))


def _show_plain(read: Callable[[], Progress], ended: threading.Event) -> None:
    shown = 0
    while not ended.wait(PLAIN_EVERY_S if shown else LIVE_EVERY_S):
        progress = read()
        if progress.steps > shown:
            console.print(line_of(progress))
            shown = progress.steps


def _show_lack(
    read: Callable[[], Progress], lack: Callable[[], str], still_s: float, ended: threading.Event
) -> None:
    before = 0
    while not ended.wait(still_s):
        steps = read().steps
        if steps == before and (what := lack()):
            console.print(f"waiting for a larger cluster: {what}")
        before = steps


def line_of(progress: Progress) -> str:
    """`480/4800 clips · 38 clips/s · 0:01:53 left · loss 1.21 · waits for data 62% · 3 rejected`"""
    left = "-" if progress.left_s is None else str(timedelta(seconds=round(progress.left_s)))
    parts = [
        f"{progress.passes}/{progress.total_passes} clips",
        f"{progress.clips_per_s:.0f} clips/s",
        f"{left} left",
        f"loss {progress.loss:.2f}",
        f"waits for data {progress.data_wait_share:.0%}",
        f"{progress.rejected} rejected",
    ]
    parts += [f"{kind} {uar:.0%}" for kind, uar in progress.scores.items()]
    return " · ".join(parts)


def print_plan(
    spec: DistillSpec,
    capacity: Capacity,
    shards: Mapping[str, Sequence[Shard]],
    trains: bool = True,
) -> None:
    """The resolved spec, what the job needs, what there is. Raises CapacityError."""
    console.print(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
    for name, found in shards.items():
        console.print(f"{name}: {len(found)} shards, {sum(shard.clips for shard in found)} clips")
    costs = None if spec.resources.costs is None else read_costs(spec.resources.costs)
    outlook = look_out(spec, capacity, costs, trains)
    print_outlook(capacity, outlook)
    if isinstance(spec, StudySpec):
        print_outlook(capacity, look_out_cells(spec, capacity, costs))
    total = total_of([stage.need for stage in outlook.stages])
    wanted = ", ".join(f"{amount:g} {kind}s" for kind, amount in total.items())
    there = ", ".join(f"{amount:g} {kind}s" for kind, amount in capacity.amounts.items())
    console.print(f"needed at least: {wanted}; {capacity.where} has {there}: it fits")


def print_outlook(capacity: Capacity, found: Outlook) -> None:
    """How many of each stage, and with costs how fast and how dear."""
    table = Table(title=f"on {capacity.where}")
    for name in ("stage", "at least", "as many as", "each", "clips/s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in found.stages:
        need = stage.need
        pace = "" if stage.clips_per_s is None else f"{stage.clips_per_s:,.0f}"
        if stage is found.slowest:
            pace += " (slowest)"
        each = f"{need.cpus:g} CPUs" + (f", {need.gpus:g} GPUs" if need.gpus else "")
        table.add_row(need.stage, str(need.count), str(stage.count), each, pace)
    console.print(table)
    if found.dollars_per_hour is not None:
        nodes = ", ".join(f"{count} x {kind}" for kind, count in found.nodes.items() if kind)
        clips = found.dollars_per_million
        million = "" if clips is None else f", {clips:,.0f} for a million clips"
        console.print(f"{nodes}: {found.dollars_per_hour:.2f} dollars an hour{million}")


def print_synthetic(spec: SyntheticSpec) -> None:
    """What the synthetic corpus is, and what its teachers have seen."""
    labels = spec.labelled_per_emotion * len(EMOTIONS)
    console.print(
        f"A synthetic corpus, which shows that the mechanism works and not what it is worth: "
        f"{spec.unlabelled_clips} unlabelled clips, {labels} labelled ones, other speakers in "
        "each set. The teachers' backbones were trained on speakers of their own and stand for "
        f"what large public models bring; their heads were fitted on the very {labels} labels "
        "that the label-only student gets."
    )


def print_controls(result: DistillResult, pseudo_labelled: StudentScores) -> None:
    """What each way of learning gains over labels alone, in points of UAR."""
    if result.label_only is None or result.label_only.uar is None:
        return
    base = result.label_only.uar
    table = Table(title="gain over the label-only student, in points of UAR")
    table.add_column("")
    table.add_column("points", justify="right")
    rows = {
        "both teachers": result.student,
        "speech teacher alone": result.comparisons["speech_only"],
        "face teacher alone": result.comparisons["face_only"],
        "face teacher alone, faces swapped between clips": result.comparisons["swapped_faces"],
        "both teachers, targets shuffled between clips": result.comparisons["shuffled_targets"],
        "the label-only student's pseudo-labels": pseudo_labelled,
    }
    for name, scores in rows.items():
        if scores.uar is not None:
            table.add_row(name, f"{100 * (scores.uar - base):+.1f}")
    console.print(table)


def print_result(result: DistillResult) -> None:
    """The scores, side by side, and what was done to get them."""
    table = Table(title=f"{result.name}, seed {result.seed}: scores on held-out speakers")
    for column in ("", "parameters", "UAR", "WAR", "macro F1"):
        table.add_column(column, justify="left" if not column else "right")
    rows: dict[str, StudentScores | TeacherScores | None] = {
        "student, distilled": result.student,
        "student, labels only": result.label_only,
        **{f"student, {kind.replace('_', ' ')}": s for kind, s in result.comparisons.items()},
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
    console.print(table)
    for count, what in (
        (clips.differing, "on which the teachers differ"),
        (clips.unsure, "left out, for no teacher was sure"),
    ):
        if count:
            console.print(f"of all clips seen, {count / clips.passes:.0%} {what}")
    console.print(
        f"{clips.total} clips: {clips.trained} trained, {clips.rejected} rejected · "
        f"{result.steps} steps · {result.clips_per_s:.0f} clips/s · waits for data "
        f"{result.data_wait_share:.0%} · first step after {seconds.to_first_step:.0f} s, "
        f"all in {seconds.total:.0f} s"
    )
