"""What a model said of labelled clips -> everything that is worth knowing of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import softmax

from liser_dist.bootstrap import count_answers, draw_speakers, interval_of, resampled_uar
from liser_dist.calibration import calibration_error
from liser_dist.evaluation import score
from liser_dist.records import Example
from liser_dist.results import Record

_THIRDS = ("low third", "middle third", "high third")


class Group(Record):
    """Some of the clips."""

    clips: int
    uar: float
    war: float
    macro_f1: float


class OfEmotion(Record):
    clips: int
    recall: float
    precision: float | None  # None where nothing was taken for it


class Scored(Record):
    """What follows from a model's answers. Shares, 0 to 1; intervals of 95 %, over speakers."""

    clips: int
    speakers: int
    uar: float
    uar_interval: tuple[float, float] | None  # None where it is not known who speaks
    war: float
    macro_f1: float
    calibration_error: float
    confidence: float  # the mean of what it was surest of
    by_emotion: dict[str, OfEmotion]
    confusion: dict[str, dict[str, int]]  # emotion -> what it was taken for -> clips
    by_speaker: dict[str, Group]
    by_intensity: dict[str, Group]
    by_fold: dict[str, Group]


class Assessment(Scored):
    """`result.json`."""

    name: str
    model: str
    rejected: int
    not_answered: int  # clips that show the model nothing
    seconds: float


def assess(
    clips: Sequence[Example],
    logits: NDArray[np.float32],
    emotions: Sequence[str],
    fold_of: Mapping[str, int],
    resamples: int,
) -> Scored:
    """Of answers: `logits` [clips, emotions]."""
    labels = np.array([emotions.index(clip.emotion) for clip in clips])
    found = logits.argmax(axis=1)
    shares = np.asarray(softmax(logits, axis=1), np.float32)
    confusion = np.zeros((len(emotions), len(emotions)), np.int64)
    np.add.at(confusion, (labels, found), 1)
    all_of_them = score(labels, found)

    def groups(name_of: Callable[[Example], str]) -> dict[str, Group]:
        members: dict[str, list[int]] = defaultdict(list)
        for row, clip in enumerate(clips):
            if name := name_of(clip):
                members[name].append(row)
        return {name: _group(labels[rows], found[rows]) for name, rows in sorted(members.items())}

    return Scored(
        clips=len(clips),
        speakers=len({clip.speaker for clip in clips if clip.speaker}),
        uar=all_of_them.uar,
        uar_interval=_interval(clips, labels, found, len(emotions), resamples),
        war=all_of_them.war,
        macro_f1=all_of_them.macro_f1,
        calibration_error=calibration_error(shares, labels),
        confidence=float(shares.max(axis=1).mean()),
        by_emotion={
            name: OfEmotion(
                clips=int(confusion[row].sum()),
                recall=float(confusion[row, row] / confusion[row].sum()),
                precision=_share(confusion[row, row], confusion[:, row].sum()),
            )
            for row, name in enumerate(emotions)
            if confusion[row].any()
        },
        confusion={
            name: dict(zip(emotions, counts.tolist(), strict=True))
            for name, counts in zip(emotions, confusion, strict=True)
        },
        by_speaker=groups(lambda clip: clip.speaker),
        by_intensity=groups(lambda clip: level_of(clip.intensity)),
        by_fold=groups(lambda clip: str(fold_of.get(clip.speaker, ""))),
    )


def _group(labels: NDArray[np.int64], found: NDArray[np.int64]) -> Group:
    scores = score(labels, found)
    return Group(clips=len(labels), uar=scores.uar, war=scores.war, macro_f1=scores.macro_f1)


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _interval(
    clips: Sequence[Example],
    labels: NDArray[np.int64],
    found: NDArray[np.int64],
    emotions: int,
    resamples: int,
) -> tuple[float, float] | None:
    speakers = [clip.speaker for clip in clips]
    if not all(speakers):
        return None
    names = sorted(set(speakers))
    counts = count_answers(labels, found, speakers, names, emotions)
    return interval_of(resampled_uar(counts, draw_speakers(len(names), resamples)))


def level_of(intensity: str) -> str:
    """A group's name: a corpus's own word, or the third that a number from 0 to 1 lies in."""
    try:
        value = float(intensity)
    except ValueError:
        return intensity
    return _THIRDS[min(2, max(0, int(3 * value)))] if math.isfinite(value) else ""


# ---------------------------------------------------------------- what a person sees


def tables_of(found: Assessment) -> list[Table]:
    """The scores, the confusion matrix, and the groups."""
    scores = Table("", "", title=f"{found.name}: {found.clips} clips of {found.speakers} speakers")
    interval = found.uar_interval
    over = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    for name, text in {
        "UAR [95 % interval over speakers]": f"{100 * found.uar:.1f} %{over}",
        "WAR": f"{100 * found.war:.1f} %",
        "macro F1": f"{100 * found.macro_f1:.1f} %",
        "confidence, mean": f"{100 * found.confidence:.1f} %",
        "expected calibration error": f"{100 * found.calibration_error:.1f} %",
    }.items():
        scores.add_row(name, text)
    confusion = Table("is \\ taken for", *found.confusion, "recall", "precision")
    for name, counts in found.confusion.items():
        if (one := found.by_emotion.get(name)) is not None:
            precision = "-" if one.precision is None else f"{100 * one.precision:.0f} %"
            cells = [str(count) for count in counts.values()]
            confusion.add_row(name, *cells, f"{100 * one.recall:.0f} %", precision)
    groups = Table("", "", "clips", "UAR", "WAR", "macro F1")
    for kind in ("intensity", "fold", "speaker"):
        for name, one in getattr(found, f"by_{kind}").items():
            shares = (f"{100 * value:.1f} %" for value in (one.uar, one.war, one.macro_f1))
            groups.add_row(kind, name, str(one.clips), *shares)
    return [scores, confusion, groups]
