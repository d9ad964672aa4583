"""RAVDESS and CREMA-D as they are downloaded: what a file's name says of it, and which are missing.

RAVDESS (Livingstone and Russo, 2018), `02-01-06-01-02-01-12.mp4`: modality, channel, emotion,
intensity, statement, repetition, actor. CREMA-D (Cao et al., 2014), `1001_DFA_ANG_XX.flv`: speaker,
sentence, emotion, level. Folders may lie as they like; what counts is the file's name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

CorpusName = Literal["ravdess", "cremad"]


@dataclass(frozen=True, slots=True)
class Take:
    """One utterance of one speaker."""

    speaker: str
    emotion: str
    intensity: str
    fold: int  # from 1; no two share a speaker
    utterance: str  # the same for all recordings of it
    rank: int  # of its recordings the lowest is used: sound and picture, then sound alone

    @property
    def facts(self) -> dict[str, object]:
        return {
            "speaker": self.speaker, "emotion": self.emotion,
            "intensity": self.intensity, "fold": self.fold,
        }  # fmt: skip


# ---------------------------------------------------------------- RAVDESS

_RAVDESS_NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
_RAVDESS_EMOTIONS = (
    "neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised",
)  # fmt: skip
_ACTORS = 24
_ACTORS_A_FOLD = 4
_SONG = "02"
_SUNG = ("01", "02", "03", "04", "05", "06")  # nobody sings disgust or surprise
_NO_SINGER = 18


def _ravdess(name: str) -> Take | None:
    if (found := _RAVDESS_NAME.fullmatch(name)) is None:
        return None
    modality, channel, emotion, intensity, statement, repetition, actor = found.groups()
    if not 1 <= int(actor) <= _ACTORS or (emotion, intensity) == ("01", "02"):
        return None
    return Take(
        speaker=f"ravdess-{actor}",
        emotion=_RAVDESS_EMOTIONS[int(emotion) - 1],
        intensity="strong" if intensity == "02" else "normal",
        fold=_ravdess_fold(int(actor)),
        utterance="-".join((channel, emotion, intensity, statement, repetition, actor)),
        rank={"01": 0, "03": 1, "02": 2}[modality],
    )


def _ravdess_fold(actor: int) -> int:
    return (actor - 1) // _ACTORS_A_FOLD + 1


def _all_of_ravdess(channel: str) -> Iterator[str]:
    """The utterances of a channel that a whole download has."""
    emotions = _SUNG if channel == _SONG else tuple(f"{n:02d}" for n in range(1, 9))
    actors = [n for n in range(1, _ACTORS + 1) if channel != _SONG or n != _NO_SINGER]
    for emotion, intensity, statement, repetition, actor in itertools.product(
        emotions, ("01", "02"), ("01", "02"), ("01", "02"), actors
    ):
        if (emotion, intensity) != ("01", "02"):
            yield "-".join((channel, emotion, intensity, statement, repetition, f"{actor:02d}"))


# ---------------------------------------------------------------- CREMA-D

_CREMAD_NAME = re.compile(r"(1\d\d\d)_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX|X)")
_CREMAD_EMOTIONS = {
    "ANG": "angry", "DIS": "disgusted", "FEA": "fearful",
    "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
_SENTENCES = (
    "IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI",
)  # fmt: skip
_SPEAKERS = range(1001, 1092)
_LAST_OF_FOLD = (1018, 1036, 1054, 1072, 1091)


def _cremad(name: str) -> Take | None:
    found = _CREMAD_NAME.fullmatch(name)
    if found is None or int(found[1]) not in _SPEAKERS or found[2] not in _SENTENCES:
        return None
    speaker, sentence, emotion, level = found.groups()
    return Take(
        speaker=f"cremad-{speaker}",
        emotion=_CREMAD_EMOTIONS[emotion],
        intensity=_LEVELS[level],
        fold=_cremad_fold(int(speaker)),
        utterance=f"{speaker}_{sentence}_{emotion}_{level.replace('XX', 'X')}",
        rank=0,
    )


def _cremad_fold(speaker: int) -> int:
    return next(n for n, last in enumerate(_LAST_OF_FOLD, 1) if speaker <= last)


def _all_of_cremad() -> Iterator[str]:
    for speaker, sentence, emotion in itertools.product(_SPEAKERS, _SENTENCES, _CREMAD_EMOTIONS):
        graded = sentence == "IEO" and emotion != "NEU"
        for level in ("LO", "MD", "HI") if graded else ("X",):
            yield f"{speaker}_{sentence}_{emotion}_{level}"


# ---------------------------------------------------------------- both

FOLDS: Mapping[CorpusName, int] = {
    "ravdess": _ravdess_fold(_ACTORS),
    "cremad": len(_LAST_OF_FOLD),
}
_READ: Mapping[CorpusName, Callable[[str], Take | None]] = {"ravdess": _ravdess, "cremad": _cremad}
ENDINGS = ("mp4", "flv", "wav", "mp3", "avi", "mov", "mkv")
_SOUND_ONLY = ("wav", "mp3")


def fold_of_speaker(name: str) -> int | None:
    """The fold of a speaker as these corpora's clips name them; None of anybody else."""
    corpus, _, number = name.rpartition("-")
    if not number.isdigit():
        return None
    if corpus == "ravdess" and 1 <= int(number) <= _ACTORS:
        return _ravdess_fold(int(number))
    return _cremad_fold(int(number)) if corpus == "cremad" and int(number) in _SPEAKERS else None


def read_take(corpus: CorpusName, path: str) -> Take | None:
    """What a file's name says; None where it is no name of this corpus."""
    stem, _, ending = path.rpartition("/")[2].rpartition(".")
    take = _READ[corpus](stem)
    if take is None or ending.lower() not in ENDINGS:
        return None
    sound_only = ending.lower() in _SOUND_ONLY
    return replace(take, rank=1 + _SOUND_ONLY.index(ending.lower())) if sound_only else take


def missing_of(corpus: CorpusName, takes: Iterable[Take]) -> Sequence[str]:
    """The utterances that a whole download has and this one lacks, of each channel that it has."""
    there = {take.utterance for take in takes}
    if corpus == "cremad":
        return [utterance for utterance in _all_of_cremad() if utterance not in there]
    channels = sorted({utterance[:2] for utterance in there})
    return [u for channel in channels for u in _all_of_ravdess(channel) if u not in there]
