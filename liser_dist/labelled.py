"""The labelled sets, whole in memory: a student learns from one and is scored on the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from liser_dist import pipeline, screen
from liser_dist.errors import SpecError
from liser_dist.ledger import Rejection
from liser_dist.planning import LABELLED_SETS, Plan
from liser_dist.records import Example
from liser_dist.shards import ShardVisit
from liser_dist.spec import DistillSpec
from liser_dist.stages import Keeping
from liser_dist.targets import BrokenPartError, labelled_view

logger = logging.getLogger(__name__)


def read_labelled(
    job: Plan, desk: Any, keeping: Keeping | None, taught_sets: Collection[str] = ("test",)
) -> tuple[dict[str, list[Example]], dict[str, list[Rejection]]]:
    """The labelled sets, decoded by the same stages as the stream, or from the store; and what was
    rejected.

    `taught_sets`: those of which the teachers are asked; a run scores them on the test set alone.
    """
    names = [name for name in LABELLED_SETS if name in job.shards]
    if not names:
        return {}, {}
    screen.console.print("reading the labelled clips")
    set_of = {shard.place: name for name in names for shard in job.shards[name]}
    clips: dict[str, list[Example]] = {name: [] for name in names}
    rejected: dict[str, list[Rejection]] = {name: [] for name in names}
    taught = {place for place, name in set_of.items() if name in taught_sets}
    for example in labelled_examples(job, desk, keeping, list(set_of), taught):
        name, known = set_of[example.shard], example.emotion in job.spec.emotions
        if example.rejected or not known:
            reason = example.reason or "bad_metadata"
            detail = example.detail or f"emotion {example.emotion!r} is none of the job's"
            why = Rejection(example.key, example.shard, example.index, reason, detail)
            rejected[name].append(why)
        else:
            clips[name].append(example)
    for name, found in rejected.items():
        for reason, count in Counter(one.reason for one in found).items():
            first = next(one for one in found if one.reason == reason)
            logger.warning(
                "data.%s: %d clips are left out, %s, the first %s: %s",
                name, count, reason, first.key, first.detail,
            )  # fmt: skip
    require_labels(job.spec, clips)
    require_disjoint_speakers(clips)
    return clips, rejected


def labelled_examples(
    job: Plan, desk: Any, keeping: Keeping | None, shards: Sequence[str], taught: Collection[str]
) -> list[Example]:
    """By shard and index; the teachers are asked about the clips of some of the shards."""
    there: list[Example] = []
    left = list(shards)
    if keeping is not None:
        stored = keeping.store.find()
        views = {shard: labelled_view(taught=shard in taught) for shard in shards}
        for shard in shards:
            if stored.whole(shard, views[shard]):
                with suppress(BrokenPartError):
                    there += keeping.store.read_shard(stored.parts(shard, views[shard]))
                    left.remove(shard)
    if left:
        visits = [ShardVisit(0, place) for place in left]
        there += pipeline.read_all(
            pipeline.build_examples(
                job.spec, visits, desk, keeping=keeping, labelled=True, taught=taught
            )
        )
    return sorted(there, key=lambda example: (example.shard, example.index))


def require_labels(spec: DistillSpec, clips: Mapping[str, Sequence[Example]]) -> None:
    """Raise SpecError when a labelled set has no clip to learn from or be scored on."""
    for name, examples in clips.items():
        if not examples:
            raise SpecError(
                f"`data.{name}` {getattr(spec.data, name)} has no clip with an `emotion` of the "
                f"job's {list(spec.emotions)} in its JSON: mend the labels, or leave the set out"
            )


def require_disjoint_speakers(clips: Mapping[str, Sequence[Example]]) -> None:
    """Raise SpecError when somebody speaks in two labelled sets: scores would flatter."""
    set_of: dict[str, str] = {}
    for name, examples in clips.items():
        for speaker in {example.speaker for example in examples if example.speaker}:
            if (other := set_of.setdefault(speaker, name)) != name:
                raise SpecError(
                    f"speaker {speaker!r} is in `data.{other}` and in `data.{name}`: give sets "
                    "that share no speaker"
                )
