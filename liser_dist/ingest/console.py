"""Prints the plan, the progress and the result of an ingest job."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import yaml
from rich.table import Table

from liser_dist.console import output
from liser_dist.ingest.job import IngestPlan
from liser_dist.ingest.manifest import RecordingGroup


def print_ingest_plan(job: IngestPlan) -> None:
    """Print the resolved spec and how much is to be ingested."""
    output.print(yaml.safe_dump(job.spec.model_dump(mode="json"), sort_keys=False))
    _print_pending(job)


def _print_pending(job: IngestPlan) -> None:
    size_gb = sum(recording.size_bytes for recording in job.pending) / 1e9
    done = len(job.recordings) - len(job.pending)
    output.print(
        f"{job.spec.source}: {_count(len(job.recordings), 'recording')}, {done} done; "
        f"{len(job.pending)} pending, {size_gb:.3g} GB"
    )


def show_ingest(job: IngestPlan, groups: Iterable[RecordingGroup]) -> None:
    """Print a line for each group when it is committed, and a table of all at the end."""
    _print_pending(job)
    done: list[RecordingGroup] = []
    for group in groups:
        done.append(group)
        recordings = sum(len(group.sources) for group in done)
        output.print(_group_line(group, recordings, len(job.pending)))
    if done:
        _print_summary(done)


def _group_line(group: RecordingGroup, done: int, total: int) -> str:
    """Return a line such as `3/12 recordings · 41 new clips · 8 pieces rejected`."""
    clips = _count(group.clips, "new clip")
    rejected = f"{_count(len(group.refused), 'piece')} rejected"
    return f"{done}/{_count(total, 'recording')} · {clips} · {rejected}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_summary(groups: list[RecordingGroup]) -> None:
    """Print how much became clips, and why the rest was rejected."""
    table = Table("", "number", "minutes", title="Ingested recordings")
    read_s = sum(recording.length_s for group in groups for recording in group.sources)
    recordings = sum(len(group.sources) for group in groups)
    table.add_row("recordings", str(recordings), f"{read_s / 60:.1f}")
    clips_s = sum(shard.length_s for group in groups for shard in group.shards)
    table.add_row("clips", str(sum(group.clips for group in groups)), f"{clips_s / 60:.1f}")
    rejected = [piece for group in groups for piece in group.refused]
    length_s: defaultdict[str, float] = defaultdict(float)
    for piece in rejected:
        length_s[piece.reason] += piece.end_s - piece.start_s
    for reason, count in Counter(piece.reason for piece in rejected).most_common():
        minutes = f"{length_s[reason] / 60:.1f}" if length_s[reason] else "-"
        table.add_row(f"rejected: {reason}", str(count), minutes)
    output.print(table)
