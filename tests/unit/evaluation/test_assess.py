"""Scores of a model's predictions, and summaries of a study's cells."""

from __future__ import annotations

import numpy as np
import pytest

from liser_dist.config.study import StudySpec
from liser_dist.evaluation.assess import assess, intensity_level
from liser_dist.evaluation.study_cell import Cell, MethodPredictions
from liser_dist.evaluation.study_report import (
    Resampled,
    StudyResult,
    chance_level,
    compare_methods,
    score_cells,
    uar_table,
)
from liser_dist.records import Example
from liser_dist.runs.predictions import probabilities_of

EMOTIONS = ("sad", "happy", "angry")


def clip(number: int, emotion: str, speaker: str, intensity: str = "") -> Example:
    return Example(
        key=f"k{number}", shard="s", index=number, epoch=0,
        emotion=emotion, speaker=speaker, intensity=intensity,
    )  # fmt: skip


def sure_of(found: list[int]) -> np.ndarray:
    return (4 * np.eye(len(EMOTIONS))[found]).astype(np.float32)


def test_answers_are_looked_at_from_all_sides() -> None:
    clips = [
        clip(0, "sad", "ann", "0.1"), clip(1, "sad", "ann", "0.9"),
        clip(2, "happy", "bob", "0.1"), clip(3, "happy", "bob", "0.5"),
    ]  # fmt: skip
    assessment = assess(
        clips, probabilities_of(sure_of([0, 0, 0, 1])), EMOTIONS, {"ann": 1, "bob": 2}, 100
    )
    assert assessment.uar == pytest.approx(0.75)
    assert assessment.confusion["happy"] == {"sad": 1, "happy": 1, "angry": 0}  # type: ignore[index]
    of_sad = assessment.by_emotion["sad"]  # type: ignore[index]
    assert (of_sad.clips, of_sad.recall, of_sad.precision) == (2, 1.0, pytest.approx(2 / 3))
    assert assessment.by_speaker["bob"].war == 0.5  # type: ignore[index]
    assert assessment.by_intensity["low third"].clips == 2  # type: ignore[index]
    assert assessment.by_fold["2"].uar == 0.5  # type: ignore[index]
    low, high = assessment.uar_interval  # type: ignore[misc]
    assert low <= 0.75 <= high


def test_what_is_not_known_is_left_out() -> None:
    assessment = assess([clip(0, "sad", ""), clip(1, "happy", "")], np.eye(3)[:2], EMOTIONS, {}, 10)
    assert assessment.uar_interval is None
    assert not assessment.by_speaker
    assert not assessment.by_fold
    assert [intensity_level(text) for text in ("strong", "0.4", "nan", "")] == [
        "strong", "middle third", "", "",
    ]  # fmt: skip


def study(**axes: object) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "emotions": EMOTIONS,
            "data": {"unlabelled": "a", "labelled": "b", "test": "c"},
            "teachers": {
                name: {"kind": "backbone", "model": "m"} for name in ("speech", "face")
            },
            "loss": {"embedding": 1.0},
            "targets": {"store": "d"},
            "study": {"resamples": 400, **axes},
        }
    )  # fmt: skip


def test_folds_are_pooled_and_methods_compared_on_the_same_draws() -> None:
    spec = study(label_shares=[0.5], seeds=[0, 1], methods=["labels_only", "both"])
    labels = np.arange(30) % 3
    predictions = {}
    for seed in (0, 1):
        for fold, speakers in ((1, ["ann", "bob"]), (2, ["cas", "dan"])):
            names = [speakers[n % 2] for n in range(30)]
            keys = [f"{fold}-{n}" for n in range(30)]
            wrong = np.where(np.arange(30) < 15, (labels + 1) % 3, labels)
            predictions[Cell(0.5, fold, seed)] = [
                MethodPredictions("labels_only", keys, names, labels, sure_of(wrong.tolist())),
                MethodPredictions("both", keys, names, labels, sure_of(labels.tolist())),
            ]
    assert len(score_cells("synthetic", predictions)) == 8
    resampled = Resampled(spec.study, len(EMOTIONS), predictions)
    assert resampled.speakers == 4
    summed = {summary.method: summary for summary in resampled.summarise()}
    assert summed["both"].uar == summed["both"].low == 1.0
    assert summed["labels_only"].uar == pytest.approx(0.5)
    assert summed["labels_only"].spread == 0
    (gain,) = compare_methods(spec.study, resampled)
    assert (gain.method, gain.over) == ("both", "labels_only")
    assert gain.gain == pytest.approx(0.5)
    assert 0.3 < gain.low <= 0.5 <= gain.high < 0.7


def test_a_study_marks_students_that_say_one_emotion_and_shows_chance() -> None:
    spec = study(label_shares=[0.5], seeds=[0], methods=["labels_only", "both"])
    labels, names = np.arange(30) % 2, [f"speaker-{n % 5}" for n in range(30)]
    keys = [str(n) for n in range(30)]
    predictions = {
        Cell(0.5, fold, 0): [
            # Another emotion in each fold, but always the same one within it.
            MethodPredictions("labels_only", keys, names, labels, sure_of([fold] * 30)),
            MethodPredictions("both", keys, names, labels, sure_of(labels.tolist())),
        ]
        for fold in (0, 1)
    }
    resampled = Resampled(spec.study, len(EMOTIONS), predictions)
    result = StudyResult(
        name="s", corpus="c", cells=2, test_speakers=5, students=resampled.summarise(),
        teachers=[], gains=[], chance=chance_level(predictions), seconds=1.0, spec_hash="",
    )  # fmt: skip
    assert result.chance == 0.5  # no label is "angry"
    shown = {
        row[0]: row[1] for row in zip(*(c.cells for c in uar_table(result).columns), strict=True)
    }
    assert (
        shown["student: labels only"] == "50.0 [50.0, 50.0], predicts only one emotion in 2 cells"
    )
    assert shown["student: both"] == "100.0 [100.0, 100.0]"
    assert shown["chance"] == "50.0"
