"""Teacher disagreements are counted once per clip, and the largest are recorded."""

import numpy as np
import pytest

from liser_dist.records import Example, Provenance, Targets
from liser_dist.runs.disagreement import (
    MAX_CLIPS,
    DisagreementRecord,
    jensen_shannon,
    teacher_probabilities,
)

KNOWN = [[True, True, True], [True, True, False]]  # the face teacher does not know the third
BOTH = [True, True, False]


def clip(index: int, speech: list[float], face: list[float]) -> Example:
    """`fold` gives 0 in place of a logarithm where the teacher does not know the emotion."""

    def logits(shares: list[float]) -> np.ndarray:
        return np.log(np.array(shares, np.float32).clip(1e-9)).astype(np.float16)

    targets = {
        name: Targets(logits=logits(shares), mass=1.0)
        for name, shares in (("speech", speech), ("face", face))
    }
    return Example(
        key=f"clip-{index}", shard="a.tar", index=index, epoch=index % 2, targets=targets
    )


def middle(_: Provenance) -> float:
    return 0.5


def entered(*rows: Example) -> DisagreementRecord:
    opinions = DisagreementRecord(BOTH)
    opinions.enter(rows, teacher_probabilities(rows, KNOWN), middle)
    return opinions


def test_clips_of_which_both_spoke_are_counted_by_what_each_held_likeliest() -> None:
    silent = clip(9, [1, 0, 0], [])
    record = entered(
        clip(0, [0.9, 0.1, 0], [0.8, 0.2, 1]), clip(1, [0.9, 0.1, 0], [0.1, 0.9, 1]), silent
    )
    assert record.counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [disagreement.key for disagreement in record.largest][:1] == ["clip-1"]
    assert "clip-9" not in {disagreement.key for disagreement in record.largest}


def test_who_means_an_emotion_that_the_other_does_not_know_does_not_differ() -> None:
    record = entered(clip(0, [0.0007, 0.0003, 0.999], [0, 1, 1]), clip(1, [1, 0, 0], [0, 1, 1]))
    other, quarrel = sorted(record.largest, key=lambda disagreement: disagreement.index)
    assert other.differ < 0.01
    assert quarrel.differ == pytest.approx(1, abs=0.01)
    assert record.counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert other.speech[2] == pytest.approx(0.999, abs=1e-3)  # and is shown as it was said
    assert other.face == pytest.approx([0, 1, 0], abs=1e-3)


def test_what_fell_on_no_emotion_of_the_job_makes_a_difference_small() -> None:
    differ = jensen_shannon(teacher_probabilities([clip(0, [1, 0, 0], [0, 0.1, 1])], KNOWN) * BOTH)
    np.testing.assert_allclose(differ, [0.1], atol=0.01)


def test_the_greatest_are_kept_once_each_however_they_come() -> None:
    rows = [clip(n, [1 - n / 200, n / 200, 0], [0.05, 0.95, 1]) for n in range(100)]
    together = entered(*rows, rows[3])
    in_steps = DisagreementRecord(BOTH)
    for row in [*reversed(rows), rows[3]]:
        in_steps.enter([row], teacher_probabilities([row], KNOWN), middle)
    assert together.largest == in_steps.largest
    assert [disagreement.index for disagreement in together.largest] == list(range(MAX_CLIPS))
    again = DisagreementRecord.from_json(together.to_json())
    assert (again.largest, again.counts.tolist()) == (
        together.largest, together.counts.tolist(),
    )  # fmt: skip


def test_what_each_teacher_predicts_is_counted_also_where_it_is_alone() -> None:
    alone = [clip(n, [0.1, 0.9, 0], []) for n in range(3)]
    record = entered(clip(5, [0.9, 0.1, 0], [0.9, 0.1, 1]), *alone, clip(9, [], []))
    assert record.shares(["sad", "happy", "angry"]) == {
        "speech": {"happy": 0.75, "sad": 0.25}, "face": {"sad": 1.0},
    }  # fmt: skip
    assert record.compared == 1
    again = DisagreementRecord.from_json(record.to_json())
    assert again.predicted.tolist() == record.predicted.tolist() == [[1, 3, 0], [1, 0, 0]]


def test_a_teacher_that_knows_no_emotion_predicts_none() -> None:
    rows = [clip(0, [0.9, 0.1, 0], [0.9, 0.1, 1])]
    record = DisagreementRecord([False] * 3)
    record.enter(rows, teacher_probabilities(rows, [[True] * 3, [False] * 3]), middle)
    assert set(record.shares(["sad", "happy", "angry"])) == {"speech"}


def test_the_record_of_an_earlier_version_can_be_read() -> None:
    saved = entered(clip(0, [0.9, 0.1, 0], [0.1, 0.9, 1])).to_json()
    del saved["predicted"]
    record = DisagreementRecord.from_json(saved)
    assert (record.compared, record.differing) == (1, 1)
    assert record.shares(["sad", "happy", "angry"]) == {}
    rows = [clip(1, [0.9, 0.1, 0], [])]
    record.enter(rows, teacher_probabilities(rows, KNOWN), middle)
    assert record.shares(["sad", "happy", "angry"]) == {"speech": {"sad": 1.0}}


def test_clips_that_differ_are_a_part_of_those_that_were_compared() -> None:
    rows = [
        clip(0, [0.9, 0.1, 0], [0.8, 0.2, 1]), clip(1, [0.9, 0.1, 0], [0.1, 0.9, 1]),
        # Its likeliest shared emotion is another, but it means one that the face cannot.
        clip(2, [0.1, 0.0, 0.9], [0.0, 1, 1]),
        clip(3, [0.9, 0.1, 0], []),
    ]  # fmt: skip
    record = entered(*rows)
    assert (record.compared, record.differing) == (2, 1)
    assert record.counts.sum() == record.compared
