"""What a person sees of an ingest job."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import yaml
from rich.table import Table

from liser_dist.ingest import Plan
from liser_dist.screen import console
from liser_dist.sources import Group


def print_plan(job: Plan) -> None:
    """The resolved spec, and what there is to do."""
    console.print(yaml.safe_dump(job.spec.model_dump(mode="json"), sort_keys=False))
    print_left(job)


def print_left(job: Plan) -> None:
    size_gb = sum(source.size_bytes for source in job.left) / 1e9
    done = len(job.sources) - len(job.left)
    console.print(
        f"{job.spec.source}: {len(job.sources)} videos, {done} of them done; "
        f"{len(job.left)} to do, {size_gb:.3g} GB"
    )


def line_of(group: Group, done: int, total: int) -> str:
    """`3/12 videos · 41 clips of 0:23:10 · 8 pieces rejected`"""
    clips = sum(shard.nsamples for shard in group.shards)
    return f"{done}/{total} videos · {clips} clips more · {len(group.refused)} rejected"


def show(job: Plan, groups: Iterable[Group]) -> None:
    """Each group when it is done; what became of all of them, at the end."""
    print_left(job)
    done: list[Group] = []
    for group in groups:
        done.append(group)
        videos = sum(len(one.sources) for one in done)
        console.print(line_of(group, videos, len(job.left)))
    if done:
        print_result(done)


def print_result(groups: Iterable[Group]) -> None:
    """What was kept, and why the rest was not."""
    groups = list(groups)
    table = Table("", "number", "minutes", title="what became of the new video")
    kept_s = sum(shard.length_s for group in groups for shard in group.shards)
    seen_s = sum(source.length_s for group in groups for source in group.sources)
    table.add_row("videos", str(sum(len(g.sources) for g in groups)), f"{seen_s / 60:.1f}")
    clips = sum(shard.nsamples for group in groups for shard in group.shards)
    table.add_row("clips", str(clips), f"{kept_s / 60:.1f}")
    refused = [piece for group in groups for piece in group.refused]
    length_s: defaultdict[str, float] = defaultdict(float)
    for piece in refused:
        length_s[piece.reason] += piece.end_s - piece.start_s
    for reason, count in Counter(piece.reason for piece in refused).most_common():
        minutes = f"{length_s[reason] / 60:.1f}" if length_s[reason] else "-"
        table.add_row(f"rejected: {reason}", str(count), minutes)
    console.print(table)
