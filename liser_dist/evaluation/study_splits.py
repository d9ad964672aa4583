"""Splits the labelled clips of a study into what each cell may learn from and what it is tested on.

`check_labels` finds mistakes in the labels before any embedding is computed. Once they are
computed, `draw_splits` finds emotions of which no clip has embeddings from both backbones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

from liser_dist.config.study import StudySpec
from liser_dist.data.shard_list import Shard
from liser_dist.data.shards import ShardVisit, read_samples
from liser_dist.data.splits import (
    draw_labels,
    find_folds,
    require_all_classes,
    require_speakers,
    split_by_fold,
)
from liser_dist.errors import SpecError
from liser_dist.evaluation.study_cell import Cell
from liser_dist.records import TEACHERS, Example, Labelled

_Clip = TypeVar("_Clip", bound=Labelled)
# What a clip must show the backbone of each teacher, and how to give it.
_LACKING = {
    "speech": ("have no audio", "give clips with sound"),
    "face": ("show no face", "give video, not audio files"),
}


@dataclass(frozen=True, slots=True)
class CellSplit:
    """The labelled clips of a cell, as rows of the table of all labelled clips.

    Attributes:
        train: Clips whose labels may be used.
        test: Clips to predict.
    """

    train: Sequence[int]
    test: Sequence[int]


def check_labels(spec: StudySpec, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Check speakers, folds and emotions by the JSON of the labelled clips; decodes nothing.

    Args:
        spec: Spec of the study.
        shards: The shards of each set.

    Raises:
        SpecError: Clips lack a speaker, a fold lacks a speaker, or an emotion has no clip.
    """
    pool, test = (_read_labels(shards.get(name, ()), spec) for name in ("labelled", "test"))
    for train, _ in split_clips(spec, pool, test).values():
        require_all_classes(train, spec.emotions, "data.labelled")


def _read_labels(shards: Iterable[Shard], spec: StudySpec) -> list[Labelled]:
    """Return the clips of shards that have an emotion of the study, without their content."""
    return [
        replace(sample, video=b"")
        for shard in shards
        for sample in read_samples(ShardVisit(0, shard.place, shard.version))
        if not sample.rejected and sample.emotion in spec.emotions
    ]


def split_clips(
    spec: StudySpec, pool: Sequence[_Clip], test: Sequence[_Clip]
) -> dict[int, tuple[list[_Clip], list[_Clip]]]:
    """Return, for each fold, the clips to train on and those to test on.

    Args:
        spec: Spec of the study.
        pool: The clips of `data.labelled`.
        test: The clips of `data.test`; empty if the study has folds.

    Raises:
        SpecError: Clips lack a speaker, or a fold lacks a speaker.
    """
    for name, clips in (("labelled", pool), ("test", test)):
        require_speakers(clips, f"data.{name}")
    fold_of = find_folds(spec.study.folds, (clip.speaker for clip in pool), "study.folds")
    return split_by_fold(pool, test, fold_of)


def draw_splits(
    spec: StudySpec, pool: Sequence[Example], test: Sequence[Example]
) -> dict[Cell, CellSplit]:
    """Draw the split of every cell, before any cell runs.

    Args:
        spec: Spec of the study.
        pool: The clips of `data.labelled`.
        test: The clips of `data.test`; empty if the study has folds.

    Raises:
        SpecError: Clips lack a speaker, a fold lacks a speaker, or an emotion has no clip.
    """
    row_of = {(clip.shard, clip.index): row for row, clip in enumerate([*pool, *test])}

    def rows(clips: Iterable[Example]) -> list[int]:
        return [row_of[clip.shard, clip.index] for clip in clips]

    splits = {}
    for fold, (train, tested) in split_clips(spec, pool, test).items():
        require_all_classes(train, spec.emotions, "data.labelled")
        # All methods get the same labels, so only clips with embeddings of both teachers count.
        usable = [clip for clip in train if all(_has_embedding(clip, name) for name in TEACHERS)]
        _require_embeddings(spec, train, usable)
        for share, seed in product(spec.study.label_shares, spec.study.seeds):
            known = draw_labels(usable, share, seed)
            splits[Cell(share, fold, seed)] = CellSplit(rows(known), rows(tested))
    return dict(sorted(splits.items()))


def _has_embedding(clip: Example, name: str) -> bool:
    """Return whether a teacher's backbone gave an embedding of the clip."""
    return bool(clip.targets_from(name).embedding.size)


def _require_embeddings(
    spec: StudySpec, train: Sequence[Example], usable: Sequence[Example]
) -> None:
    """Check that each emotion has a clip of which both backbones gave an embedding.

    Raises:
        SpecError: One has none. The message says what the clips lack.
    """
    present = {clip.emotion for clip in usable}
    missing = [emotion for emotion in spec.emotions if emotion not in present]
    if not missing:
        return
    without = {name: sum(not _has_embedding(clip, name) for clip in train) for name in TEACHERS}
    name = max(without, key=lambda teacher: without[teacher])
    lacking, remedy = _LACKING[name]
    raise SpecError(
        f"`data.labelled`: {without[name]} of {len(train)} clips {lacking}, and a study learns "
        "only from clips with both audio and a face; no such clip is labelled "
        f"{' or '.join(missing)}: {remedy}, or remove the emotion from `emotions`"
    )
