"""Draws shares of labelled clips, and splits them into folds by speaker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from liser_dist.data.public_corpora import fold_of_speaker
from liser_dist.errors import SpecError
from liser_dist.records import Labelled

_Clip = TypeVar("_Clip", bound=Labelled)

ONLY_FOLD = 1  # fold of all speakers, if there is a separate test set


def draw_labels(pool: Sequence[_Clip], share: float, seed: int) -> list[_Clip]:
    """Draw a share of the labelled clips, evenly over classes and, within a class, speakers.

    Each class keeps its share, and at least one clip. Draws with one seed are nested: a smaller
    share is part of a larger one.
    """
    by_class: dict[str, list[_Clip]] = defaultdict(list)
    for clip in sorted(pool, key=lambda clip: clip.key):
        by_class[clip.emotion].append(clip)
    drawn = []
    for number, emotion in enumerate(sorted(by_class)):
        order = _speakers_in_turn(by_class[emotion], np.random.default_rng([seed, number]))
        drawn += order[: max(1, round(share * len(order)))]
    return drawn


def _speakers_in_turn(clips: Iterable[_Clip], rng: np.random.Generator) -> list[_Clip]:
    """Shuffle clips so that each speaker's first comes before any speaker's second."""
    of_speaker: dict[str, list[_Clip]] = defaultdict(list)
    for clip in clips:
        of_speaker[clip.speaker].append(clip)
    rows = [[spoken[n] for n in rng.permutation(len(spoken))] for spoken in of_speaker.values()]
    shuffled = [rows[n] for n in rng.permutation(len(rows))]
    return [clip for row in zip_longest(*shuffled) for clip in row if clip is not None]


# ---------------------------------------------------------------- folds


def find_folds(
    folds: str | Mapping[int, Sequence[str]] | None, speakers: Iterable[str], field: str
) -> dict[str, int]:
    """Return the fold of each speaker.

    Args:
        folds: "ravdess" or "cremad", the speakers of each fold, or None for ONLY_FOLD.
        speakers: names, repeated or not.
        field: the spec's field that names the folds, for the error message.

    Raises:
        SpecError: a speaker is in no fold.
    """
    names = sorted(set(speakers))
    if folds is None:
        return dict.fromkeys(names, ONLY_FOLD)
    if isinstance(folds, str):
        fold_of = {name: fold for name in names if (fold := fold_of_speaker(name)) is not None}
    else:
        fold_of = {name: fold for fold, members in folds.items() for name in members}
    if missing := [name for name in names if name not in fold_of]:
        raise SpecError(
            f"`{field}`: speaker {missing[0]!r}"
            f"{f' (and {len(missing) - 1} more)' * (len(missing) > 1)} is in none of the folds: "
            "give a YAML file with the speakers of each fold"
        )
    return {name: fold_of[name] for name in names}


def split_by_fold(
    pool: Sequence[_Clip], test: Sequence[_Clip], fold_of: Mapping[str, int]
) -> dict[int, tuple[list[_Clip], list[_Clip]]]:
    """Return for each fold the clips to train on and those to test on.

    Args:
        pool: labelled clips.
        test: a separate test set; if it is empty, each fold is tested in turn.
        fold_of: from `find_folds`.

    Raises:
        SpecError: a speaker is on both sides, or a side is empty.
    """
    splits = {}
    for fold in sorted(set(fold_of.values())):
        if test:
            train, tested = list(pool), list(test)
        else:
            train = [clip for clip in pool if fold_of[clip.speaker] != fold]
            tested = [clip for clip in pool if fold_of[clip.speaker] == fold]
        require_disjoint_speakers({"labelled": train, "test": tested})
        if not (train and tested):
            raise SpecError("`study.folds` puts all speakers in one fold: give at least two folds")
        splits[fold] = train, tested
    return splits


def require_disjoint_speakers(sets: Mapping[str, Iterable[Labelled]]) -> None:
    """Check that no speaker is in two sets: scores on speakers of the training set are too high.

    Clips without a speaker are ignored.

    Args:
        sets: The clips of each set, by the name of its field under `data`.

    Raises:
        SpecError: A speaker is in two sets.
    """
    set_of: dict[str, str] = {}
    for name, clips in sets.items():
        for speaker in sorted({clip.speaker for clip in clips if clip.speaker}):
            if (other := set_of.setdefault(speaker, name)) != name:
                raise SpecError(
                    f"speaker {speaker!r} is in `data.{other}` and in `data.{name}`: keep "
                    "all clips of a speaker in one set"
                )


def require_speakers(clips: Iterable[Labelled], field: str) -> None:
    """Check that each clip names its speaker, by whom clips are split.

    Raises:
        SpecError: names a clip that does not.
    """
    for clip in clips:
        if not clip.speaker:
            raise SpecError(
                f"`{field}`: the clip {clip.key} of {clip.shard} has no `speaker` in its JSON: "
                "add it, because clips are split by speaker"
            )


def require_all_classes(clips: Iterable[Labelled], emotions: Sequence[str], field: str) -> None:
    """Check that each emotion has a clip.

    Raises:
        SpecError: names the emotions that have none.
    """
    present = {clip.emotion for clip in clips}
    if missing := [name for name in emotions if name not in present]:
        raise SpecError(
            f"`{field}` has no clips labelled {', '.join(missing)}: add such clips, or remove "
            f"{', '.join(missing)} from `emotions`"
        )
