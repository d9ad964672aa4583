"""Which labels may be known: shares of a pool of labelled clips, and folds of speakers to test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from liser_dist.errors import SpecError
from liser_dist.labelled_corpora import fold_of_speaker
from liser_dist.records import Labelled

L = TypeVar("L", bound=Labelled)

ALL = 1  # the only fold, where the test set is one of its own


def draw_labels(pool: Sequence[L], share: float, seed: int) -> list[L]:
    """A share of the labelled clips, by class and, within a class, by speaker in turn.

    A class keeps its share, and one clip at least. Draws of one seed are nested: a smaller share
    is part of a larger one.
    """
    by_class: dict[str, list[L]] = defaultdict(list)
    for clip in sorted(pool, key=lambda clip: clip.key):
        by_class[clip.emotion].append(clip)
    drawn = []
    for number, emotion in enumerate(sorted(by_class)):
        order = _speakers_in_turn(by_class[emotion], np.random.default_rng([seed, number]))
        drawn += order[: max(1, round(share * len(order)))]
    return drawn


def _speakers_in_turn(clips: Iterable[L], rng: np.random.Generator) -> list[L]:
    """Shuffled, but nobody's second clip before everybody's first."""
    of_speaker: dict[str, list[L]] = defaultdict(list)
    for clip in clips:
        of_speaker[clip.speaker].append(clip)
    rows = [[theirs[n] for n in rng.permutation(len(theirs))] for theirs in of_speaker.values()]
    shuffled = [rows[n] for n in rng.permutation(len(rows))]
    return [clip for row in zip_longest(*shuffled) for clip in row if clip is not None]


# ---------------------------------------------------------------- folds


def find_folds(
    folds: str | Mapping[int, Sequence[str]] | None, speakers: Iterable[str], field: str
) -> dict[str, int]:
    """The fold of each speaker; ALL, where there are none.

    Args:
        folds: "ravdess" or "cremad", or the speakers of each.

    Raises:
        SpecError: somebody is in no fold.
    """
    names = sorted(set(speakers))
    if folds is None:
        return dict.fromkeys(names, ALL)
    if isinstance(folds, str):
        found = {name: fold for name in names if (fold := fold_of_speaker(name)) is not None}
    else:
        found = {name: fold for fold, of_fold in folds.items() for name in of_fold}
    if missing := [name for name in names if name not in found]:
        raise SpecError(
            f"`{field}`: speaker {missing[0]!r} is in none of the folds"
            f"{f', nor are {len(missing) - 1} more' * (len(missing) > 1)}: give a YAML file with "
            "the speakers of each fold"
        )
    return {name: found[name] for name in names}


def split_by_fold(
    pool: Sequence[L], test: Sequence[L], fold_of: Mapping[str, int]
) -> dict[int, tuple[list[L], list[L]]]:
    """For each fold the clips to train on and those to test: its own, or the test set.

    Raises SpecError when somebody is on both sides, or a side is empty.
    """
    splits = {}
    for fold in sorted(set(fold_of.values())):
        if test:
            train, tested = list(pool), list(test)
        else:
            train = [clip for clip in pool if fold_of[clip.speaker] != fold]
            tested = [clip for clip in pool if fold_of[clip.speaker] == fold]
        require_disjoint(train, tested)
        if not (train and tested):
            raise SpecError("all speakers are in one fold: give two folds at least")
        splits[fold] = train, tested
    return splits


def require_disjoint(train: Iterable[Labelled], test: Iterable[Labelled]) -> None:
    """Raise SpecError when somebody speaks on both sides of a split: scores would flatter."""
    if both := {clip.speaker for clip in train} & {clip.speaker for clip in test}:
        raise SpecError(f"speaker {min(both)!r} is on both sides of a split")


def require_speakers(clips: Iterable[Labelled], field: str) -> None:
    """Raise SpecError when it is not known who speaks: no split could be trusted."""
    for clip in clips:
        if not clip.speaker:
            raise SpecError(
                f"`{field}`: the clip {clip.key} of {clip.shard} has no `speaker` in its JSON: "
                "write it there, for splits go by speakers"
            )


def require_all_classes(clips: Iterable[Labelled], emotions: Sequence[str], field: str) -> None:
    """Raise SpecError when an emotion has no clip."""
    there = {clip.emotion for clip in clips}
    if missing := [name for name in emotions if name not in there]:
        raise SpecError(
            f"`{field}` has no clip of {', '.join(missing)}: add some, or leave that out of "
            "`emotions`"
        )
