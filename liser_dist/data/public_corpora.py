"""Reads labels from the file names of RAVDESS and CREMA-D downloads, and finds missing files.

RAVDESS (Livingstone and Russo, 2018), `02-01-06-01-02-01-12.mp4`: modality, channel, emotion,
intensity, statement, repetition, actor. CREMA-D (Cao et al., 2014), `1001_DFA_ANG_XX.flv`: speaker,
sentence, emotion, level. Only the file name counts; folders may be arranged in any way.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

CorpusName = Literal["ravdess", "cremad"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """What a recording's file name says: who speaks, how, and which utterance it is.

    Attributes:
        speaker: the corpus and the speaker's number.
        emotion: one of the names of `config.base.EMOTIONS`.
        intensity: as the corpus grades it, or "unspecified".
        fold: from 1; no two folds share a speaker.
        id: the same for all recordings of one utterance.
        rank: of the recordings of one utterance the lowest rank is used: first those with sound
            and picture, then those with sound alone.
    """

    speaker: str
    emotion: str
    intensity: str
    fold: int
    id: str
    rank: int

    @property
    def labels(self) -> dict[str, object]:
        """The part that is stored in the clip's JSON."""
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
_ACTORS_PER_FOLD = 4
_SONG = "02"
_SUNG_EMOTIONS = ("01", "02", "03", "04", "05", "06")  # songs have neither disgust nor surprise
_ACTOR_WITHOUT_SONGS = 18


def _parse_ravdess(name: str) -> Utterance | None:
    if (match := _RAVDESS_NAME.fullmatch(name)) is None:
        return None
    modality, channel, emotion, intensity, statement, repetition, actor = match.groups()
    if not 1 <= int(actor) <= _ACTORS or (emotion, intensity) == ("01", "02"):
        return None
    return Utterance(
        speaker=f"ravdess-{actor}",
        emotion=_RAVDESS_EMOTIONS[int(emotion) - 1],
        intensity="strong" if intensity == "02" else "normal",
        fold=_ravdess_fold(int(actor)),
        id="-".join((channel, emotion, intensity, statement, repetition, actor)),
        rank={"01": 0, "03": 1, "02": 2}[modality],
    )


def _ravdess_fold(actor: int) -> int:
    return (actor - 1) // _ACTORS_PER_FOLD + 1


def _all_of_ravdess(channel: str) -> Iterator[str]:
    """Yield the ids of all utterances of a channel (speech or song)."""
    emotions = _SUNG_EMOTIONS if channel == _SONG else tuple(f"{n:02d}" for n in range(1, 9))
    actors = [n for n in range(1, _ACTORS + 1) if channel != _SONG or n != _ACTOR_WITHOUT_SONGS]
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


def _parse_cremad(name: str) -> Utterance | None:
    match = _CREMAD_NAME.fullmatch(name)
    if match is None or int(match[1]) not in _SPEAKERS or match[2] not in _SENTENCES:
        return None
    speaker, sentence, emotion, level = match.groups()
    return Utterance(
        speaker=f"cremad-{speaker}",
        emotion=_CREMAD_EMOTIONS[emotion],
        intensity=_LEVELS[level],
        fold=_cremad_fold(int(speaker)),
        id=f"{speaker}_{sentence}_{emotion}_{level.replace('XX', 'X')}",
        rank=0,
    )


def _cremad_fold(speaker: int) -> int:
    return next(n for n, last in enumerate(_LAST_OF_FOLD, 1) if speaker <= last)


def _all_of_cremad() -> Iterator[str]:
    """Yield the ids of all utterances."""
    for speaker, sentence, emotion in itertools.product(_SPEAKERS, _SENTENCES, _CREMAD_EMOTIONS):
        graded = sentence == "IEO" and emotion != "NEU"
        for level in ("LO", "MD", "HI") if graded else ("X",):
            yield f"{speaker}_{sentence}_{emotion}_{level}"


# ---------------------------------------------------------------- both

_PARSERS: Mapping[CorpusName, Callable[[str], Utterance | None]] = {
    "ravdess": _parse_ravdess,
    "cremad": _parse_cremad,
}
CORPUS_EXTENSIONS = ("mp4", "flv", "wav", "mp3", "avi", "mov", "mkv")
_AUDIO_EXTENSIONS = ("wav", "mp3")


def fold_of_speaker(name: str) -> int | None:
    """Return the fold of a speaker of RAVDESS or CREMA-D; None for any other name."""
    corpus, _, number = name.rpartition("-")
    if not number.isdigit():
        return None
    if corpus == "ravdess" and 1 <= int(number) <= _ACTORS:
        return _ravdess_fold(int(number))
    return _cremad_fold(int(number)) if corpus == "cremad" and int(number) in _SPEAKERS else None


def parse_file_name(corpus: CorpusName, path: str) -> Utterance | None:
    """Return what a file's name says; None if the corpus does not name its files like that."""
    stem, _, extension = path.rpartition("/")[2].rpartition(".")
    utterance = _PARSERS[corpus](stem)
    if utterance is None or extension.lower() not in CORPUS_EXTENSIONS:
        return None
    if extension.lower() in _AUDIO_EXTENSIONS:
        return replace(utterance, rank=1 + _AUDIO_EXTENSIONS.index(extension.lower()))
    return utterance


def missing_utterances(corpus: CorpusName, utterances: Iterable[Utterance]) -> Sequence[str]:
    """Return the ids of the utterances that a complete download would have beyond the given ones.

    Of RAVDESS only the channels (speech, song) count of which there is at least one utterance.
    """
    present = {utterance.id for utterance in utterances}
    if corpus == "cremad":
        return [name for name in _all_of_cremad() if name not in present]
    channels = sorted({name[:2] for name in present})
    return [name for part in channels for name in _all_of_ravdess(part) if name not in present]
