"""A result counts the clips that were used, and warns of what it does not show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from liser_dist.config.distill import DistillSpec
from liser_dist.records import Example
from liser_dist.runs.checkpoints import Checkpoint
from liser_dist.runs.disagreement import DisagreementRecord
from liser_dist.runs.ledger import Ledger, Rejection
from liser_dist.runs.predictions import Predictions
from liser_dist.training.stream import TrainSummary
from liser_dist.training.summary import count_labelled, summarise, warn_of_predictions

EMOTIONS = ("sad", "happy", "angry")
SPEC = DistillSpec.model_validate(
    {
        "name": "short",
        "emotions": EMOTIONS,
        "data": {"unlabelled": "a", "labelled": "b", "validation": "c"},
        "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}},
        "student": {"kind": "counting"},
    }
)
SUMMARY = TrainSummary(
    checkpoint="c", complete=True, passes=20, first_step_at=1.0, training_s=2.0,
    data_wait_share=0.5,
)  # fmt: skip


def plan() -> Any:
    return SimpleNamespace(spec=SPEC, teachers={}, identities={}, started=0.0)


def checkpoint(**state: Any) -> Checkpoint:
    known = {"steps": 4, "taught": 20, "learning_rates": {"distilled": 0.1}}
    return Checkpoint(
        spec=SPEC, students={}, best={"distilled": {}}, optimizer={}, state=known | state,
        ledger=Ledger(),
    )  # fmt: skip


def clip(index: int, emotion: str) -> Example:
    return Example(key=str(index), shard="s", index=index, epoch=0, emotion=emotion)


def test_clips_that_were_left_out_are_not_counted_as_used_or_as_rejected() -> None:
    def rejected(index: int, reason: str, detail: str) -> Rejection:
        return Rejection(str(index), "s", index, reason, detail)

    counts = count_labelled(
        {"labelled": [clip(0, "sad"), clip(1, "happy")], "test": [clip(2, "sad")]},
        {
            "labelled": [rejected(3, "other_emotion", "calm"), rejected(4, "silent", "")],
            "test": [rejected(5, "other_emotion", "calm")],
        },
    )
    assert counts == {
        "labelled": 3, "labelled_by_set": {"labelled": 2, "test": 1}, "labelled_rejected": 1,
        "labelled_left_out": {"calm": 2},
    }  # fmt: skip


def labelled_clips(count: int, speakers: int) -> list[Example]:
    return [
        Example(
            key=str(n), shard="s", index=n, epoch=0, emotion=EMOTIONS[n % 3],
            speaker=str(n % speakers) if speakers else "",
        )
        for n in range(count)
    ]  # fmt: skip


def test_a_student_that_says_one_emotion_is_at_chance_and_both_are_told() -> None:
    probabilities = np.tile([0.2, 0.5, 0.3], (60, 1))
    warnings = warn_of_predictions("test clips", labelled_clips(60, 4), probabilities, EMOTIONS)
    assert len(warnings) == 2
    assert "the student predicted 'happy' for 100 % of the test clips" in warnings[0]
    assert (
        "33.3 % (95 % interval 33.3 to 33.3), and guessing among 3 emotions gives 33.3 %"
        in warnings[1]
    )


@pytest.mark.parametrize("speakers", [10, 0])
def test_a_student_that_learned_is_not_warned_of(speakers: int) -> None:
    clips = labelled_clips(60, speakers)
    right = np.eye(3)[[EMOTIONS.index(clip.emotion) for clip in clips]]
    assert warn_of_predictions("test clips", clips, right, EMOTIONS) == []


def test_chance_is_that_of_the_emotions_that_the_labels_have() -> None:
    clips = [clip for clip in labelled_clips(60, 5) if clip.emotion != "angry"]
    guessed = np.eye(3)[[n % 2 for n in range(len(clips))]]
    (warning,) = warn_of_predictions("validation clips", clips, guessed[::-1], EMOTIONS)
    assert "guessing among 2 emotions gives 50.0 %" in warning


def test_the_result_of_a_short_run_with_a_teacher_of_one_emotion_says_so() -> None:
    record = DisagreementRecord([True] * 3)
    told = np.full((20, 2, 3), np.nan, np.float32)
    told[:, 0] = [0.1, 0.1, 0.8]
    told[:5, 1] = [0.9, 0.1, 0.0]
    told[5:9, 1] = [0.1, 0.1, 0.8]
    rows = [clip(n, "") for n in range(20)]
    record.enter(rows, told, lambda _: 0.5)
    result = summarise(
        plan(), SUMMARY, checkpoint(opinions=record.to_json(), doubts=[3.0, 7.0]),
        {"labelled": [clip(0, "sad")], "validation": [clip(1, "sad")]},
        {"labelled": [], "validation": [Rejection("k", "s", 3, "other_emotion", "calm")]},
        Predictions([], EMOTIONS, {}),
    )  # fmt: skip
    assert (result.clips.compared, result.clips.differing, result.clips.unsure) == (9, 5, 3)
    assert result.teacher_shares == {
        "speech": {"angry": 1.0}, "face": {"sad": 5 / 9, "angry": 4 / 9},
    }  # fmt: skip
    few, late, teacher, left_out = result.warnings
    assert few.startswith("4 steps of training: a student learns little")
    assert "`train.validate_every` is 200" in late
    assert "the speech teacher predicted 'angry' for 100 %" in teacher
    assert (
        left_out
        == "data.validation: 1 clip with an emotion that is not in `emotions` left out: calm 1"
    )


def test_a_checkpoint_of_a_version_that_kept_no_record_has_a_result() -> None:
    result = summarise(plan(), SUMMARY, checkpoint(), {}, {}, Predictions([], EMOTIONS, {}))
    assert (result.clips.compared, result.clips.differing, result.teacher_shares) == (0, 0, {})
