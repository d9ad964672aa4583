"""Reads a job's labelled sets into memory: labelled, validation and test."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from liser_dist.config.stream import StreamSpec
from liser_dist.data.shard_list import Shard
from liser_dist.data.shards import ShardVisit
from liser_dist.data.splits import require_disjoint_speakers
from liser_dist.errors import SpecError
from liser_dist.pipeline.dataset import build_examples, read_all
from liser_dist.pipeline.stages import RowOptions
from liser_dist.pipeline.store import BrokenPartError, labelled_view
from liser_dist.pipeline.store_writer import StoreWriters
from liser_dist.records import Example, Reason
from liser_dist.runs.caveats import warn_left_out
from liser_dist.runs.ledger import Rejection

logger = logging.getLogger(__name__)

NO_LABEL = "no label"  # stands for the emotion of a clip that has none


def read_labelled(
    stream: StreamSpec,
    shards: Mapping[str, Sequence[Shard]],
    coordinator: Any,
    writers: StoreWriters | None = None,
    sets_with_targets: Collection[str] = ("test",),
) -> tuple[dict[str, list[Example]], dict[str, list[Rejection]]]:
    """Read the labelled sets, from the target store or through the stages of the stream.

    Args:
        stream: How clips are decoded and what the teachers compute.
        shards: The shards of each set, by the name of its field under `data`.
        coordinator: The run's coordinator actor.
        writers: The run's target store.
        sets_with_targets: The sets for whose clips the teachers compute targets. A run scores its
            teachers on the test set only.

    Returns:
        The clips of each set that are used, and the clips of each set that are not, with the
        reason; clips of other emotions than the job's have the reason `other_emotion`.

    Raises:
        SpecError: A set has no clip of the job's emotions, or two sets have a speaker in common.
        LiserError: A stage raised it.
    """
    set_of = {shard.place: name for name, of_set in shards.items() for shard in of_set}
    clips: dict[str, list[Example]] = {name: [] for name in shards}
    rejected: dict[str, list[Rejection]] = {name: [] for name in shards}
    if not set_of:
        return clips, rejected
    with_targets = {path for path, name in set_of.items() if name in sets_with_targets}
    versions = {shard.place: shard.version for of_set in shards.values() for shard in of_set}
    for example in _read_shards(stream, versions, with_targets, coordinator, writers):
        name = set_of[example.shard]
        if rejection := _rejection_of(example, stream.emotions):
            rejected[name].append(rejection)
        else:
            clips[name].append(example)
    for name, of_set in rejected.items():
        _warn_of_rejections(name, of_set)
    _require_labels(shards, clips, stream.emotions)
    require_disjoint_speakers(clips)
    return clips, rejected


def _rejection_of(example: Example, emotions: Sequence[str]) -> Rejection | None:
    if not example.rejected and example.emotion in emotions:
        return None
    reason, detail = example.reason, example.detail
    if not example.rejected:
        reason, detail = Reason.OTHER_EMOTION, example.emotion or NO_LABEL
    return Rejection(example.key, example.shard, example.index, str(reason), detail)


def count_left_out(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Return the number of clips whose emotion is not in the job's `emotions`, by emotion."""
    emotions = (one.detail for one in rejections if one.reason == Reason.OTHER_EMOTION)
    return dict(sorted(Counter(emotions).items()))


def _warn_of_rejections(name: str, rejections: Sequence[Rejection]) -> None:
    for warning in warn_left_out(f"data.{name}", count_left_out(rejections)):
        logger.warning("%s", warning)
    damaged = [one for one in rejections if one.reason != Reason.OTHER_EMOTION]
    for reason, count in Counter(rejection.reason for rejection in damaged).items():
        first = next(rejection for rejection in damaged if rejection.reason == reason)
        clips = "1 clip" if count == 1 else f"{count} clips"
        logger.warning(
            "data.%s: skipping %s (reason: %s), such as %s: %s",
            name, clips, reason, first.key, first.detail,
        )  # fmt: skip


def _read_shards(
    stream: StreamSpec,
    versions: Mapping[str, str],
    with_targets: Collection[str],
    coordinator: Any,
    writers: StoreWriters | None,
) -> list[Example]:
    """Return all clips of these shards by shard and index; only some shards get targets."""
    examples: list[Example] = []
    left = list(versions)
    if writers is not None:
        stored = writers.store.list_parts()
        for shard in versions:
            view = labelled_view(with_targets=shard in with_targets)
            if stored.is_complete(shard, view):
                try:
                    examples += writers.store.read_shard(stored.parts(shard, view))
                    left.remove(shard)
                except BrokenPartError as error:
                    logger.warning("%s", error)
    if left:
        options = RowOptions(labelled=True, shards_with_targets=with_targets, writers=writers)
        visits = [ShardVisit(0, path, versions[path]) for path in left]
        examples += read_all(build_examples(stream, visits, coordinator, options))
    return sorted(examples, key=lambda example: (example.shard, example.index))


def _require_labels(
    shards: Mapping[str, Sequence[Shard]],
    clips: Mapping[str, Sequence[Example]],
    emotions: Sequence[str],
) -> None:
    """Check that each set has a clip to learn from or to be scored on."""
    for name, of_set in clips.items():
        if not of_set:
            folder = shards[name][0].place.rpartition("/")[0]
            raise SpecError(
                f"`data.{name}` {folder} has no usable clip whose `emotion` in its JSON is "
                f"one of the job's `emotions` {list(emotions)}: correct the labels, or leave the "
                "set out"
            )
