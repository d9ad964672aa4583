"""Computes all scores of a model from its predictions on labelled clips."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.table import Table

from liser_dist.config.base import Record
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.records import Example
from liser_dist.students.bootstrap import uar_interval
from liser_dist.students.scoring import score
from liser_dist.teachers.calibration import calibration_error

_THIRDS = ("low third", "middle third", "high third")


class GroupScores(Record):
    """Scores on some of the clips."""

    clips: int
    uar: float
    war: float
    macro_f1: float


class EmotionScores(Record):
    """Recall and precision of one emotion; precision is None if it was never predicted."""

    clips: int
    recall: float
    precision: float | None


class DetailedScores(Record):
    """Scores of a model on labelled clips, as shares from 0 to 1.

    Attributes:
        clips: Number of clips.
        speakers: Number of speakers.
        uar: Unweighted average recall.
        uar_interval: Its 95 % confidence interval over speakers; None if speakers are not known.
        war: Weighted accuracy: the share of correct clips.
        macro_f1: F1 averaged over emotions.
        calibration_error: Expected calibration error.
        confidence: Mean probability of the predicted emotion.
        by_emotion: Scores of each emotion that has clips.
        confusion: Number of clips by label, then by prediction.
        by_speaker: Scores of each speaker.
        by_intensity: Scores of each level of intensity.
        by_fold: Scores of each fold.
    """

    clips: int
    speakers: int
    uar: float
    uar_interval: tuple[float, float] | None
    war: float
    macro_f1: float
    calibration_error: float
    confidence: float
    by_emotion: dict[str, EmotionScores]
    confusion: dict[str, dict[str, int]]
    by_speaker: dict[str, GroupScores]
    by_intensity: dict[str, GroupScores]
    by_fold: dict[str, GroupScores]


class Assessment(DetailedScores):
    """Result of an evaluation: `result.json`.

    Attributes:
        name: Name of the evaluation.
        model: Path or name of the model.
        identity: Its weights; None in files of earlier versions.
        rejected: Number of rejected clips.
        left_out: Number of clips whose emotion is not in `emotions`, by emotion.
        not_answered: Number of clips without input for the model, such as clips without a face.
        seconds: Total time.
    """

    name: str
    model: str
    identity: TeacherIdentity | None = None
    rejected: int
    left_out: dict[str, int] = Field(default_factory=dict)
    not_answered: int
    seconds: float


def assess(
    clips: Sequence[Example],
    probabilities: NDArray[np.floating[Any]],
    emotions: Sequence[str],
    fold_of: Mapping[str, int],
    resamples: int,
) -> DetailedScores:
    """Score a model's predictions.

    Args:
        clips: Labelled clips.
        probabilities: Predictions [clips, emotions].
        emotions: Names of the emotions.
        fold_of: Fold of each speaker; may be empty.
        resamples: Number of bootstrap resamples.
    """
    labels = np.array([emotions.index(clip.emotion) for clip in clips])
    predictions = probabilities.argmax(axis=1)
    confusion = np.zeros((len(emotions), len(emotions)), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    overall = score(labels, predictions)
    speakers = [clip.speaker for clip in clips]

    def groups(name_of: Callable[[Example], str]) -> dict[str, GroupScores]:
        members: dict[str, list[int]] = defaultdict(list)
        for row, clip in enumerate(clips):
            if name := name_of(clip):
                members[name].append(row)
        return {
            name: _score_group(labels[rows], predictions[rows])
            for name, rows in sorted(members.items())
        }

    return DetailedScores(
        clips=len(clips),
        speakers=len(set(filter(None, speakers))),
        uar=overall.uar,
        uar_interval=uar_interval(labels, predictions, speakers, len(emotions), resamples)
        if all(speakers)
        else None,
        war=overall.war,
        macro_f1=overall.macro_f1,
        calibration_error=calibration_error(probabilities, labels),
        confidence=float(probabilities.max(axis=1).mean()),
        by_emotion=_score_emotions(confusion, emotions),
        confusion={
            name: dict(zip(emotions, counts.tolist(), strict=True))
            for name, counts in zip(emotions, confusion, strict=True)
        },
        by_speaker=groups(lambda clip: clip.speaker),
        by_intensity=groups(lambda clip: intensity_level(clip.intensity)),
        by_fold=groups(lambda clip: str(fold_of.get(clip.speaker, ""))),
    )


def _score_emotions(
    confusion: NDArray[np.int64], emotions: Sequence[str]
) -> dict[str, EmotionScores]:
    """Return the scores of each emotion that has clips; `confusion` [labels, predictions]."""
    scores = {}
    for row, name in enumerate(emotions):
        clips, predicted = int(confusion[row].sum()), int(confusion[:, row].sum())
        if clips:
            correct = confusion[row, row]
            scores[name] = EmotionScores(
                clips=clips,
                recall=float(correct / clips),
                precision=float(correct / predicted) if predicted else None,
            )
    return scores


def _score_group(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> GroupScores:
    scores = score(labels, predictions)
    return GroupScores(clips=len(labels), uar=scores.uar, war=scores.war, macro_f1=scores.macro_f1)


def intensity_level(intensity: str) -> str:
    """Return the group of an intensity.

    That is the corpus's own word, or for a number from 0 to 1 the third of that range; "" for a
    number that is not finite.
    """
    try:
        value = float(intensity)
    except ValueError:
        return intensity
    return _THIRDS[min(2, max(0, int(3 * value)))] if math.isfinite(value) else ""


# ---------------------------------------------------------------- console tables


def assessment_tables(assessment: Assessment) -> list[Table]:
    """Return tables of the scores, the confusion matrix, and the groups of clips."""
    return [_score_table(assessment), _confusion_table(assessment), _group_table(assessment)]


def _score_table(assessment: Assessment) -> Table:
    title = f"{assessment.name}: {assessment.clips} clips of {assessment.speakers} speakers"
    table = Table("", "", title=title)
    interval = assessment.uar_interval
    bounds = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    for name, text in {
        "UAR [95 % interval over speakers]": f"{100 * assessment.uar:.1f} %{bounds}",
        "WAR": f"{100 * assessment.war:.1f} %",
        "macro F1": f"{100 * assessment.macro_f1:.1f} %",
        "mean confidence": f"{100 * assessment.confidence:.1f} %",
        "expected calibration error": f"{100 * assessment.calibration_error:.1f} %",
    }.items():
        table.add_row(name, text)
    return table


def _confusion_table(assessment: Assessment) -> Table:
    table = Table("label \\ prediction", *assessment.confusion, "recall", "precision")
    for name, counts in assessment.confusion.items():
        if (scores := assessment.by_emotion.get(name)) is not None:
            precision = "-" if scores.precision is None else f"{100 * scores.precision:.0f} %"
            cells = [str(count) for count in counts.values()]
            table.add_row(name, *cells, f"{100 * scores.recall:.0f} %", precision)
    return table


def _group_table(assessment: Assessment) -> Table:
    table = Table("", "", "clips", "UAR", "WAR", "macro F1")
    for kind, groups in {
        "intensity": assessment.by_intensity,
        "fold": assessment.by_fold,
        "speaker": assessment.by_speaker,
    }.items():
        for name, scores in groups.items():
            shares = (f"{100 * value:.1f} %" for value in (scores.uar, scores.war, scores.macro_f1))
            table.add_row(kind, name, str(scores.clips), *shares)
    return table
