"""What follows from a model's answers, and how a study's cells are summed up."""

from __future__ import annotations

import numpy as np
import pytest

from liser_dist.assessment import assess, level_of
from liser_dist.records import Example
from liser_dist.study_cell import Answers, Cell
from liser_dist.study_report import Resampled, compare_all, rows_of
from liser_dist.study_spec import StudySpec

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
    found = assess(clips, sure_of([0, 0, 0, 1]), EMOTIONS, {"ann": 1, "bob": 2}, 100)
    assert found.uar == pytest.approx(0.75)
    assert found.confusion["happy"] == {"sad": 1, "happy": 1, "angry": 0}  # type: ignore[index]
    of_sad = found.by_emotion["sad"]  # type: ignore[index]
    assert (of_sad.clips, of_sad.recall, of_sad.precision) == (2, 1.0, pytest.approx(2 / 3))
    assert found.by_speaker["bob"].war == 0.5  # type: ignore[index]
    assert found.by_intensity["low third"].clips == 2  # type: ignore[index]
    assert found.by_fold["2"].uar == 0.5  # type: ignore[index]
    low, high = found.uar_interval  # type: ignore[misc]
    assert low <= 0.75 <= high


def test_what_is_not_known_is_left_out() -> None:
    found = assess([clip(0, "sad", ""), clip(1, "happy", "")], sure_of([0, 1]), EMOTIONS, {}, 10)
    assert found.uar_interval is None
    assert not found.by_speaker
    assert not found.by_fold
    assert [level_of(text) for text in ("strong", "0.4", "nan", "")] == [
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
    said = {}
    for seed in (0, 1):
        for fold, speakers in ((1, ["ann", "bob"]), (2, ["cas", "dan"])):
            names = [speakers[n % 2] for n in range(30)]
            keys = [f"{fold}-{n}" for n in range(30)]
            wrong = np.where(np.arange(30) < 15, (labels + 1) % 3, labels)
            said[Cell(0.5, fold, seed)] = [
                Answers("labels_only", keys, names, labels, sure_of(wrong.tolist())),
                Answers("both", keys, names, labels, sure_of(labels.tolist())),
            ]
    assert len(rows_of(spec, said)) == 8
    resampled = Resampled(spec, said)
    assert resampled.speakers == 4
    summed = {one.method: one for one in resampled.summaries()}
    assert summed["both"].uar == summed["both"].low == 1.0
    assert summed["labels_only"].uar == pytest.approx(0.5)
    assert summed["labels_only"].spread == 0
    (gain,) = compare_all(spec, resampled)
    assert (gain.method, gain.over) == ("both", "labels_only")
    assert gain.gain == pytest.approx(0.5)
    assert 0.3 < gain.low <= 0.5 <= gain.high < 0.7
